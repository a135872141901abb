"""The flags of `evaluate.py` and of the audit of a finished run, as `tf_dp2vae.flags` has those of `train.py`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from simple_parsing.helpers.fields import field as flag

from tf_dp2vae.evaluation.real import ReferenceName
from tf_dp2vae.flags import LONGEST, MOST_CLASSES
from tf_dp2vae.validation import check, check_choice, check_seed, check_whole

_FEWEST_SAMPLES = 100
EVALUATION_PARTS = ("fidelity", "usefulness", "membership", "neighbours")


@dataclass(frozen=True)
class EvaluateFlags:
    """Evaluation.

    Attributes:
      run: folder of the run, runs/<name>.
      parts: what to measure, separated by commas - fidelity, usefulness, membership, neighbours.
      samples: how many images are sampled for training the classifiers (DPDM's protocol: 60000).
      fid_samples: images a side for FID, KID, precision, recall, density, coverage (papers: 60000).
      fid_against: real images that samples are compared with - train (as papers do) or test.
      inception_weights: weights of the FID's features; by default shared/data/inception2015_pool3_weights.npz beside the
        project, where it is.
      dataset: real data, as for train.py; by default what the run was trained on.
      data: an .npz with x_train, y_train and x_test, y_test, instead of --dataset.
      num_classes: size of the declared label set of --data.
      epochs: the most epochs that the CNN is trained (DPDM's protocol: 50).
      seed: of samples and classifiers.
      release_uncovered_numbers: also puts the numbers into the release, though no epsilon covers them.
    """

    run: Path = flag(positional=True)
    parts: str = ",".join(EVALUATION_PARTS)
    samples: int = 60_000
    fid_samples: int = 5_000
    fid_against: ReferenceName = "train"
    inception_weights: Path | None = None
    dataset: str | None = None
    data: Path | None = None
    num_classes: int = 10
    epochs: int = 3
    seed: int = 0
    release_uncovered_numbers: bool = False

    def __post_init__(self) -> None:
        for part in self.parts.split(","):
            check_choice(EVALUATION_PARTS, parts=part)
        check_choice(get_args(ReferenceName), fid_against=self.fid_against)
        _check_source(self.dataset, self.data, self.num_classes)
        check_whole(maximum=MOST_CLASSES, num_classes=self.num_classes)
        check_whole(maximum=LONGEST, epochs=self.epochs)
        check_whole(_FEWEST_SAMPLES, maximum=LONGEST, samples=self.samples, fid_samples=self.fid_samples)
        check_seed(self.seed)


@dataclass(frozen=True)
class AuditFlags:
    """Audit of a finished run.

    Attributes:
      run: folder of the run, runs/<name>.
      samples: how many images are sampled for the attacks.
      dataset: real data, as for train.py; by default what the run was trained on.
      data: an .npz with x_train, y_train and x_test, y_test, instead of --dataset.
      num_classes: size of the declared label set of --data.
      seed: of samples and of the choice of records.
    """

    run: Path = flag(positional=True)
    samples: int = 10_000
    dataset: str | None = None
    data: Path | None = None
    num_classes: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        _check_source(self.dataset, self.data, self.num_classes)
        check_whole(maximum=MOST_CLASSES, num_classes=self.num_classes)
        check_whole(_FEWEST_SAMPLES, maximum=LONGEST, samples=self.samples)
        check_seed(self.seed)


def _check_source(dataset: str | None, data: Path | None, num_classes: int) -> None:
    check(dataset is None or data is None, f"--dataset {dataset} and --data {data}: give one of them.")
    check(
        data is not None or num_classes == EvaluateFlags.num_classes,
        f"--num-classes {num_classes}: of a file's records, so give --data too. A run's own data have the run's.",
    )
