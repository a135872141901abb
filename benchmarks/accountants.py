"""ε by our two accountants beside Opacus', on events like those of our runs.

    python benchmarks/accountants.py --peers .venv-bench/bin/python

Ours are dp_accounting's RDP and PLD as `tf_dp2vae.accounting` sets them up; Opacus' are RDP and PRV (Gopi, Lee, Wutschitz
2021), code of other people. Noise is calibrated to ε = 0.2, 1 and 10, so that the figures compared are of that size. Rows go
to benchmarks/results/accountants.json. The exit code is 1 where a pair differs by more than 2 %.
"""

from __future__ import annotations

from checkout import ROOT  # before whatever imports TensorFlow or the package

# isort: split
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tf_dp2vae import accounting, planning
from tf_dp2vae.accounting import Event, Privacy
from tf_dp2vae.commands import parse
from tf_dp2vae.pretraining import Dreams
from tf_dp2vae.priors import GaussianPrior
from tf_dp2vae.recipes import RECIPES
from tf_dp2vae.refinement import Refinement

RESULTS = ROOT / "benchmarks" / "results"
TARGETS, DELTA, TOLERANCE = (0.2, 1.0, 10.0), 1e-5, 0.02
PAIRS = ("rdp", "rdp_our_orders", "pld_prv")
ALL_RELEASES = {**Dreams().shares, **GaussianPrior().shares, **Refinement().shares}
CASES: dict[str, tuple[float, int, dict[str, float]]] = {
    **{
        f"default run on 60,000, {family}": (recipe.batch_size / 60_000, recipe.steps, ALL_RELEASES)
        for family, recipe in RECIPES.items()
    },
    "steps alone, batch 1,024": (1024 / 60_000, 1_000, {}),
    "steps alone, batch 256": (256 / 60_000, 2_400, {}),
    "steps alone, batch 4,096": (4096 / 60_000, 150, {}),
    "the attacks' steps": (0.25, 8, {}),
    "every record in each step": (1.0, 8, {}),
}
"""Words → q, steps, and the one-time releases' shares of the budget."""


def opacus(peers: str, cases: list[tuple[Event, ...]]) -> list[dict[str, float]]:
    """Opacus' values, from its own interpreter."""
    question = [
        {
            "events": [[event.noise_multiplier, event.sampling_rate, event.count] for event in events],
            "delta": DELTA,
            "orders": accounting.RDP_ORDERS,
        }
        for events in cases
    ]
    script = Path(__file__).with_name("opacus_accountants.py")
    answer = subprocess.run(
        [peers, "-W", "ignore", str(script)], input=json.dumps(question), capture_output=True, text=True
    )
    if answer.returncode:
        sys.exit(f"{peers} could not run {script.name}: {(answer.stderr.strip().splitlines() or ['no message'])[-1]}")
    return json.loads(answer.stdout)


def row(words: str, target: float, events: tuple[Event, ...], theirs: dict[str, float]) -> dict[str, Any]:
    """One line: what both say, and by how much ours exceeds theirs."""
    ours = {name: accounting.epsilon(events, DELTA, name) for name in accounting.ACCOUNTANTS}  # type: ignore[arg-type]
    pairs = {
        "rdp": (ours["rdp"], theirs["rdp"]),
        "rdp_our_orders": (ours["rdp"], theirs["rdp_our_orders"]),
        "pld_prv": (ours["pld"], theirs["prv"]),
    }
    return {
        "case": words,
        "target_epsilon": target,
        "events": [event.to_json() for event in events],
        **{f"ours_{name}": value for name, value in ours.items()},
        **{f"opacus_{name}": value for name, value in theirs.items()},
        **{f"difference_{name}": mine / other - 1 for name, (mine, other) in pairs.items()},
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, fit for docs/threats.md."""
    lines = [
        "| events | target ε | RDP | Opacus RDP | difference | at our orders | PLD | Opacus PRV | difference |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        lines.append(
            f"| {r['case']} | {r['target_epsilon']:g} | {r['ours_rdp']:.4f} | {r['opacus_rdp']:.4f} | "
            f"{r['difference_rdp']:+.2%} | {r['difference_rdp_our_orders']:+.2%} | {r['ours_pld']:.4f} | "
            f"{r['opacus_prv']:.4f} | {r['difference_pld_prv']:+.2%} |"
        )
    return "\n".join(lines)


@dataclass(frozen=True)
class Flags:
    """The comparison.

    Attributes:
      peers: the interpreter of an environment with requirements-bench.txt.
    """

    peers: Path


def main() -> None:
    peers = os.fspath(parse(Flags, __doc__).peers)
    named = [
        (words, target, planning.plan(Privacy(target, DELTA), rate, steps, shares).events)
        for words, (rate, steps, shares) in CASES.items()
        for target in TARGETS
    ]
    theirs = opacus(peers, [events for *_, events in named])
    rows = [row(*case, values) for case, values in zip(named, theirs)]
    pins = dict(pin.split("==") for pin in (ROOT / "requirements-bench.txt").read_text().split() if "==" in pin)
    result = {
        "delta": DELTA,
        "versions": {"dp-accounting": version("dp-accounting"), "opacus": pins["opacus"]},
        "largest_difference": {name: max(abs(r[f"difference_{name}"]) for r in rows) for name in PAIRS},
        "rows": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "accountants.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(rows))
    beyond = [r for r in rows if max(abs(r[f"difference_{name}"]) for name in PAIRS) > TOLERANCE]
    print(f"\n{len(rows) - len(beyond)} of {len(rows)} cases agree within {TOLERANCE:.0%}, by RDP and by PLD and PRV.")
    sys.exit(bool(beyond))


if __name__ == "__main__":
    main()
