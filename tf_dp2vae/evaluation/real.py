"""The real images that a release is measured against."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tf_dp2vae import datasets
from tf_dp2vae.evaluation.release import Release
from tf_dp2vae.records import Records
from tf_dp2vae.runs import read_config
from tf_dp2vae.validation import check, times

Labelled = tuple[np.ndarray, np.ndarray]
"""Images [n, h, w, c], uint8 or float in [0, 1], and labels [n]."""
ReferenceName = Literal["train", "test"]
"""Which real images samples are compared with: records, as papers do it, or others."""


@dataclass(frozen=True)
class RealImages:
    """Records and others that training never saw.

    Attributes:
      name: of the data set.
      train: the records, uint8.
      test: others of the same kind, uint8, or None.
      num_classes: size of the label set; 0 where the images or the release's samples have no labels.
    """

    name: str
    train: Labelled
    test: Labelled | None
    num_classes: int

    @property
    def without_test(self) -> str:
        """Why nothing can be tested on images that training never saw; empty where it can."""
        return "" if self.test else f"{self.name} has no test set: give --data with x_test and y_test"

    @property
    def without_labels(self) -> str:
        """Why no classifier can be tested; empty where one can."""
        return self.without_test or ("" if self.num_classes else f"{self.name}, or the release, has no labels")


def real_images(
    run: Path, release: Release, dataset: str | None = None, data: Path | None = None, num_classes: int = 10
) -> RealImages:
    """The data set that is named, or that the run was trained on.

    Args:
      run: its folder, runs/<name>.
      release: what the images are to be like.
      dataset: a name, as for train.py.
      data: an .npz, as for train.py, instead of a name.
      num_classes: size of the declared label set of `data`.

    Raises:
      InvalidInputError: nothing says which, it cannot be had, or its images or label set are not the release's.
    """
    config = read_config(run / "private")
    check(
        bool(dataset or data or config),
        f"{run / 'private'} says nothing of the data that the release was made from: name them by --dataset or --data.",
    )
    file = data or (None if dataset else _path(config.get("data")))
    name = dataset or config.get("dataset") or "mnist"
    if file is None:
        loaded = datasets.load(name)
    else:
        declared = _as_trained(config) | ({"num_classes": num_classes} if data else {})
        loaded = datasets.load_npz(file, **declared, invalid=config.get("invalid_records", "refuse"))
    shape = release.image_shape
    check(
        loaded.train.image_shape == shape,
        f"{file or name} holds images of {times(loaded.train.image_shape)}, the release makes {times(shape)}: name the "
        "data it was made from.",
    )
    check(
        release.num_classes == 0 or loaded.train.num_classes > 0,
        f"{file or name} has no labels, and the release samples by label: name the data it was made from.",
    )
    known = loaded.train.num_classes
    check(
        release.num_classes in (0, known),
        f"{file or name} has a label set of {known}, the release one of {release.num_classes}: name the data it was made "
        "from, an .npz with its --num-classes.",
    )
    if release.num_classes == 0:
        known = 0  # its samples have no labels, whatever the images have

    def labelled(records: Records) -> Labelled:
        with records.opened() as (images, labels):
            return images, labels if known else np.zeros_like(labels)

    test = None if loaded.test is None else labelled(loaded.test)
    return RealImages(loaded.name, labelled(loaded.train), test, known)


def _as_trained(config: dict[str, Any]) -> dict[str, Any]:
    """What `load_npz` was told by train.py: other records of a person than the kept ones were never trained on."""
    unit = config.get("unit")
    check(unit is None or isinstance(unit, str), f"config.json names unit={unit!r:.50}: name the data by --data.")
    return {name: config[name] for name in ("num_classes", "unit", "max_per_unit", "seed") if name in config}


def _path(text: str | None) -> Path | None:
    check(text is None or isinstance(text, str), f"config.json names data={text!r:.50}: name the data by --data.")
    return Path(text) if text else None
