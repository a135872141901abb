"""Audits a finished run: its accounting, and what its release tells about the records.

    python -m tf_dp2vae.audit runs/<name>

prints a table and writes runs/<name>/private/audit (computed from real records: not for publication). The exit code is 1
where something that the run states was found untrue.
"""

from __future__ import annotations

import json
import sys

import tf_dp2vae.quiet  # noqa: F401 - before whatever imports TensorFlow

# isort: split
from tf_dp2vae.audit.finished import Finding, accounting_agrees, canary_bound, membership_bound
from tf_dp2vae.commands import one_line_errors, parse
from tf_dp2vae.evaluation.flags import AuditFlags
from tf_dp2vae.evaluation.real import real_images
from tf_dp2vae.evaluation.release import Release, read_release
from tf_dp2vae.evaluation.report import NOT_COVERED, guarantee, written_whole


@one_line_errors
def main() -> None:
    flags = parse(AuditFlags, __doc__)
    release = read_release(flags.run)
    findings = audit(flags, release)
    parts = [guarantee(release.statement), *(finding.part for finding in findings)]
    width = max(len(name) for part in parts for name, _ in part.rows)
    for part in parts:
        print(part.title, *(f"  {name:<{width}}  {value}" for name, value in part.rows), "", sep="\n")
    refuted = any(finding.refuted for finding in findings)
    values = {name: value for part in parts for name, value in part.values.items()}
    with written_whole(flags.run / "private" / "audit") as folder:
        text = json.dumps({"not_covered": NOT_COVERED, "refuted": refuted, **values}, indent=2) + "\n"
        (folder / "audit.json").write_text(text, encoding="utf-8")
    verdict = "SOMETHING THAT THE RUN STATES IS UNTRUE." if refuted else "Nothing that the run states was refuted."
    print(f"{verdict} Written to {flags.run / 'private' / 'audit'} (private: computed from real records)")
    sys.exit(int(refuted))


def audit(flags: AuditFlags, release: Release) -> list[Finding]:
    """Every part of the audit."""
    private, statement = flags.run / "private", release.statement
    agreement = accounting_agrees(statement, private)
    real = real_images(flags.run, release, flags.dataset, flags.data, flags.num_classes)
    samples = release.samples(flags.samples, flags.seed)
    return [
        agreement,
        membership_bound(samples, real, flags.seed, statement),
        canary_bound(samples, private, statement),
    ]


if __name__ == "__main__":
    main()
