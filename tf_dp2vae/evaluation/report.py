"""What an evaluation found, as a table and as JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tf_dp2vae import datasets
from tf_dp2vae.commands import EvaluateFlags
from tf_dp2vae.evaluation.classifiers import ClassifierResult
from tf_dp2vae.evaluation.release import Release
from tf_dp2vae.records import FULL_SCALE
from tf_dp2vae.validation import check


@dataclass(frozen=True)
class TestSet:
    """Real images to test on.

    Attributes:
      arrays: images [n, h, w, c] in [0, 1] and labels [n].
      num_classes: size of the label set.
    """

    arrays: tuple[np.ndarray, np.ndarray]
    num_classes: int


def real_test_set(flags: EvaluateFlags, release: Release) -> TestSet:
    """The test records of the data set that the flags name, or that the run was trained on.

    Raises:
      InvalidInputError: there is no test set, no label, or the images are of another size than the release's.
    """
    check(
        release.conditional, f"{flags.run} was trained without labels: a classifier cannot be trained on its samples."
    )
    config = _training_flags(flags.run)
    file = flags.data or (None if flags.dataset else _path(config.get("data")))
    name = flags.dataset or config.get("dataset") or "mnist"
    dataset = datasets.load(
        name, file, flags.num_classes if flags.data else config.get("num_classes", flags.num_classes)
    )
    check(dataset.test is not None, f"{file or name} has no test set: give --data with x_test and y_test.")
    assert dataset.test is not None
    shape = tuple(int(side) for side in np.asarray(release.sampler.sample(1, 0, 0)).shape[1:])
    check(
        dataset.test.image_shape == shape,
        f"{file or name} holds images of {dataset.test.image_shape}, the release makes {shape}: name the data it was "
        "made from.",
    )
    with dataset.test.opened() as (images, labels):
        return TestSet((images.astype(np.float32) / FULL_SCALE, labels), dataset.test.num_classes)


def _training_flags(run: Path) -> dict[str, Any]:
    file = run / "private" / "config.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _path(text: str | None) -> Path | None:
    return Path(text) if text and text != "None" else None


@dataclass(frozen=True)
class Report:
    """One evaluation.

    Attributes:
      statement: the run's `privacy.json`.
      samples: synthetic images the classifier was trained on.
      test_images: real images it was tested on.
      cnn: the classifier's result.
    """

    statement: dict[str, Any]
    samples: int
    test_images: int
    cnn: ClassifierResult

    def to_json(self) -> dict[str, Any]:
        """What `report.json` holds. The accuracies are not covered by ε: they were computed from real records."""
        return {
            "end_to_end": self.statement["end_to_end"],
            "epsilon": self.statement["epsilon"],
            "given_encoder": self.statement.get("given_encoder"),
            "delta": self.statement["delta"],
            "samples": self.samples,
            "test_images": self.test_images,
            "acc_cnn": self.cnn.accuracy,
            "chosen_epoch": self.cnn.chosen_epoch,
            "acc_synthetic_by_epoch": self.cnn.synthetic,
            "acc_real_by_epoch": self.cnn.real,
        }

    def __str__(self) -> str:
        """The terminal's table."""
        rows = [
            ("guarantee", self._guarantee()),
            ("synthetic training images", f"{self.samples:,}"),
            ("real test images", f"{self.test_images:,}"),
            (
                "CNN accuracy on real test images",
                f"{self.cnn.accuracy:.2%} (epoch {self.cnn.chosen_epoch}, chosen on synthetic)",
            ),
        ]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)

    def _guarantee(self) -> str:
        delta = self.statement["delta"]
        if self.statement["end_to_end"] and self.statement["epsilon"] is not None:
            return f"epsilon {self.statement['epsilon']:.4g} at delta {delta:g}, end to end"
        given = self.statement.get("given_encoder", {}).get("epsilon")
        return f"none end to end; given the encoder: epsilon {given:.4g} at delta {delta:g}" if given else "none"
