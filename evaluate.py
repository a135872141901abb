"""Evaluates a run by the field's protocols: fidelity, usefulness, and what the release tells about its records.

    python evaluate.py runs/<name>

prints a table and writes runs/<name>/private/evaluation (computed from real records: not for publication).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

import tf_dp2vae.quiet  # noqa: F401 - before whatever imports TensorFlow

# isort: split
from tf_dp2vae import figures
from tf_dp2vae.commands import one_line_errors, parse
from tf_dp2vae.evaluation import classifiers, membership, pictures
from tf_dp2vae.evaluation.cache import Cache
from tf_dp2vae.evaluation.fidelity import fidelity
from tf_dp2vae.evaluation.flags import EvaluateFlags
from tf_dp2vae.evaluation.inception import InceptionFeatures, find_weights
from tf_dp2vae.evaluation.neighbours import neighbours
from tf_dp2vae.evaluation.real import Labelled, RealImages, real_images
from tf_dp2vae.evaluation.release import Release, read_release
from tf_dp2vae.evaluation.report import Part, Report, Stopwatch, missing, written_whole

_FOR_A_PICTURE = 2_000
"""Samples that are drawn where nothing else is asked of them."""


@one_line_errors
def main() -> None:
    flags, watch = parse(EvaluateFlags, __doc__), Stopwatch()
    run = Path(os.path.abspath(flags.run))  # "." and ".." have no folder beside them
    with watch.time("reading"):
        release = read_release(flags.run)
        real = real_images(flags.run, release, flags.dataset, flags.data, flags.num_classes)
        weights = find_weights(flags.inception_weights) if "fidelity" in flags.parts else None
        features = InceptionFeatures(weights) if weights else None
    cache = Cache(run.parent / ".cache")

    wanted = flags.parts.split(",")
    num = flags.samples if {"usefulness", "membership"} & set(wanted) else min(flags.samples, _FOR_A_PICTURE)
    num_others = flags.samples // classifiers.VALIDATION_ONE_IN
    print(f"Sampling {num:,} + {num_others:,} images from {flags.run / 'release'}", flush=True)
    with watch.time("sampling"):
        synthetic = release.samples(num, seed=2 * flags.seed)
        others = release.samples(num_others, seed=2 * flags.seed + 1)
    with written_whole(flags.run / "private" / "evaluation") as folder:
        pictures.samples_beside_records(synthetic, real.train, folder / "samples_beside_records.png")
        measures: dict[str, Callable[[], Part]] = {
            "fidelity": lambda: _fidelity(release, real, flags, features, cache),
            "usefulness": lambda: _usefulness(synthetic, others, real, flags, cache, folder),
            "membership": lambda: _membership(synthetic, real, flags),
            "neighbours": lambda: _neighbours(others[0], real, flags, folder),
        }
        parts = []
        for name in (name for name in measures if name in wanted):
            with watch.time(name):
                parts.append(measures[name]())
        report = Report(release.statement, real.name, flags.seed, parts, watch.seconds)
        pictures.quantities_against_epsilon(report, run, folder)
        report.write(folder)
    print(f"\n{report}\n\nWritten to {flags.run / 'private' / 'evaluation'} (private: computed from real records)")
    if flags.release_uncovered_numbers:
        print(f"Published, though no ε covers it: {report.publish(flags.run / 'release')}")


def _fidelity(
    release: Release, real: RealImages, flags: EvaluateFlags, features: InceptionFeatures | None, cache: Cache
) -> Part:
    images = release.samples(flags.fid_samples, seed=2 * flags.seed)[0]
    return fidelity(images, real, flags.fid_against, features, cache)


def _usefulness(
    synthetic: Labelled, others: Labelled, real: RealImages, flags: EvaluateFlags, cache: Cache, folder: Path
) -> Part:
    if why := classifiers.impossible(real):
        return missing("Usefulness", why)
    part, cnn = classifiers.usefulness(synthetic, others, real, flags.epochs, flags.seed, cache)
    figures.accuracy_by_epoch(cnn.validation, cnn.real, cnn.chosen_epoch, folder / "accuracy.png")
    return part


def _membership(synthetic: Labelled, real: RealImages, flags: EvaluateFlags) -> Part:
    if why := membership.impossible(real):
        return missing("Membership inference", why)
    return membership.membership(synthetic, real, flags.seed)


def _neighbours(samples: np.ndarray, real: RealImages, flags: EvaluateFlags, folder: Path) -> Part:
    if real.without_test:
        return missing("Nearest neighbours", real.without_test)
    part, pairs = neighbours(samples, real, flags.seed)
    figures.image_rows(pairs, folder / "closest_pairs.png")
    return part


if __name__ == "__main__":
    main()
