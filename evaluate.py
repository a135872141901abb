"""Evaluates a run: a CNN trained on 60,000 samples of its release, tested on real images.

    python evaluate.py runs/<name>

prints a table and writes runs/<name>/private/evaluation (computed from real records: not for publication).
"""

from __future__ import annotations

import json

import tf_dp2vae.quiet  # noqa: F401 - before whatever imports TensorFlow

# isort: split
from tf_dp2vae import figures
from tf_dp2vae.commands import EvaluateFlags, one_line_errors, parse
from tf_dp2vae.evaluation.classifiers import train_on_synthetic_test_on_real
from tf_dp2vae.evaluation.release import read_release
from tf_dp2vae.evaluation.report import Report, real_test_set


@one_line_errors
def main() -> None:
    flags = parse(EvaluateFlags, __doc__)
    release = read_release(flags.run)
    test = real_test_set(flags, release)

    print(f"Sampling {flags.samples:,} + {flags.samples // 6:,} images from {flags.run / 'release'}", flush=True)
    synthetic = release.samples(flags.samples, seed=2 * flags.seed)
    validation = release.samples(flags.samples // 6, seed=2 * flags.seed + 1)
    result = train_on_synthetic_test_on_real(
        synthetic, validation, test.arrays, test.num_classes, flags.epochs, flags.seed
    )

    folder = flags.run / "private" / "evaluation"
    folder.mkdir(parents=True, exist_ok=True)
    report = Report(release.statement, flags.samples, len(test.arrays[0]), result)
    (folder / "report.json").write_text(json.dumps(report.to_json(), indent=2) + "\n", encoding="utf-8")
    figures.accuracy_by_epoch(result.synthetic, result.real, result.chosen_epoch, folder / "accuracy.png")
    print(report)
    print(f"Written to {folder} (private: computed from real records)")


if __name__ == "__main__":
    main()
