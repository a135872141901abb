"""The records themselves, behind a lid.

Only the input pipeline (`sampling`), the mechanisms, the scan of a release and the metrics for the private side may lift it;
a test reads the package's source and enforces that. What anybody may know without looking inside, because it is declared or
public, are the plain attributes.
"""

from __future__ import annotations

import hashlib
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import numpy as np
import tensorflow as tf

from tf_dp2vae.units import Unit
from tf_dp2vae.validation import check, check_choice, times

FULL_SCALE = 255
NULL = -1
Invalid = Literal["refuse", "null"]


class _Origin:
    """Which memory records were made from, without keeping it."""

    def __init__(self, array: np.ndarray):
        root = array
        while isinstance(root.base, np.ndarray):
            root = root.base
        self._root, self._bounds = weakref.ref(root), np.byte_bounds(array)

    def overlaps(self, other: _Origin) -> bool:
        """Whether some of it may be the same. Memory that was given back meanwhile was not."""
        (first, last), (others_first, others_last) = self._bounds, other._bounds
        there = self._root() is not None and other._root() is not None
        return there and first < others_last and others_first < last


class Records:
    """Images and, where there are any, their labels. `checked_records` makes them of arrays.

    Attributes:
      num_records: N, public by declaration; null records count.
      image_shape: (height, width, channels), declared.
      num_classes: the declared label set is 0 … num_classes − 1; 0 for records without labels.
      unit: what a neighbour differs by; by default one record (`units.bound_per_unit` makes it one person).
      audit_canaries: how many of the N were made up for an audit, null ones among them; declared.
    """

    audit_canaries = 0

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray | None,
        num_classes: int,
        num_null: int = 0,
        positions: np.ndarray | None = None,
    ):
        """Takes arrays that were checked (`checked_records`).

        Args:
          images: [N, height, width, channels], uint8 in 0…255.
          labels: [N], whole numbers, or None.
          num_classes: size of the declared label set; 0 without labels.
          num_null: how many null records there are besides. They contribute zero to every sum, so none is held; N counts
            them, and how many of N they are is as private as any record.
          positions: [n], ascending: where the held ones stand among all N; None: in front.
        """
        self._images, self._labels, self._origin = images, labels, _Origin(images)
        self._positions = np.arange(len(images)) if positions is None else positions
        self.num_records = len(images) + num_null
        self.image_shape: tuple[int, int, int] = tuple(images.shape[1:])  # type: ignore[assignment]
        self.num_classes = num_classes
        self.unit = Unit()
        self._unit_of: np.ndarray | None = None
        self._of_unit: np.ndarray | None = None

    @property
    def num_units(self) -> int:
        """How many units the records are of: N, or the number of persons. Public by declaration."""
        return self.num_records if self.unit.num_units is None else self.unit.num_units

    @property
    def most_held(self) -> int:
        """The most records that are no null records: N, or k of each person. Public, as both are."""
        return min(self.num_records, self.num_units * self.unit.max_per_unit)

    def about_held(self, counted: float) -> float:
        """How many records a sum is over, as far as anybody may know.

        Args:
          counted: a noisy count of them; 0 where nothing counted them. It is used for persons only, any of whom may have
            fewer than k records; elsewhere N, which is exact but for null records, serves better.
        """
        return float(self.most_held if self.unit.column is None or not counted else min(counted, self.most_held))

    def of_units(self, kept: np.ndarray, unit_of: np.ndarray, unit: Unit) -> Records:
        """The records at the positions `kept`, which belong to the units `unit_of`; the others become null records."""
        _, held, of_kept = np.intersect1d(self._positions, kept, assume_unique=True, return_indices=True)
        labels = None if self._labels is None else self._labels[held]
        null = self.num_records - len(held)
        records = Records(self._images[held], labels, self.num_classes, null, self._positions[held])
        records.unit, records._unit_of, records._origin = unit, unit_of[of_kept], self._origin
        return records

    def places(self, drawn: np.ndarray) -> np.ndarray:
        """Which record stands at each place of a batch, as an index; `NULL` where a null record does.

        A unit has as many places as it may have records, whatever it has. So a unit that is nulled leaves those of all
        others where they are.

        Args:
          drawn: whether each unit is in the batch, [units] booleans.

        Returns:
          [drawn units · k].
        """
        if self._of_unit is None:
            of_unit = np.full((self.num_units, self.unit.max_per_unit), NULL)
            unit_of = self._positions if self._unit_of is None else self._unit_of
            order = np.argsort(unit_of, kind="stable")
            sorted_units = unit_of[order]
            rank = np.arange(len(order)) - np.searchsorted(sorted_units, sorted_units)
            of_unit[sorted_units, rank] = order
            self._of_unit = of_unit
        return self._of_unit[drawn].ravel()

    @contextmanager
    def opened(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Lends images [n, h, w, c] (uint8) and labels [n] (int32; zeros where there are none); n is N less null records."""
        labels = self._labels if self._labels is not None else np.zeros(len(self._images), np.int32)
        yield self._images, labels

    def joined(self, images: np.ndarray, labels: np.ndarray, included: np.ndarray) -> Records:
        """These records and the canaries that are included; a null record in place of each canary that is not.

        Args:
          images, labels: of the canaries, [m, height, width, channels] uint8 and [m].
          included: [m], booleans.
        """
        check(self.unit.column is None, "records of other units cannot join: leave out --unit.")
        with self.opened() as (own_images, own_labels):
            all_images = np.concatenate([own_images, images[included]])
            all_labels = np.concatenate([own_labels, labels[included].astype(np.int32)])
        labels_or_none = all_labels if self.num_classes else None
        positions = np.concatenate([self._positions, self.num_records + np.flatnonzero(included)])
        null = self.num_records + len(included) - len(all_images)
        joined = Records(all_images, labels_or_none, self.num_classes, null, positions)
        joined.audit_canaries, joined._origin = len(included), self._origin
        return joined

    def stored_with(self, other: Records) -> bool:
        """Whether both were made from the same memory, as of one array given twice. No image is looked at."""
        return self._origin.overlaps(other._origin)

    def fingerprint(self) -> str:
        """sha256 of the records. A private number: it tells a resumed run that its data are the same."""
        digest = hashlib.sha256()
        with self.opened() as parts:
            for part in (*parts, *(() if self._unit_of is None else (self._unit_of,))):
                digest.update(f"{part.dtype}{part.shape}".encode())
                digest.update(np.ascontiguousarray(part).data)
        return digest.hexdigest()


def checked_records(
    images: Any,
    labels: Any | None,
    num_classes: int,
    image_shape: tuple[int, int, int] | None = None,
    what: str = "x",
    invalid: Invalid = "refuse",
) -> Records:
    """Records from what a user has.

    Args:
      images: [N, h, w] or [N, h, w, c], uint8 in 0…255 or float in [0, 1]. Floats are rounded to 8 bits.
      labels: [N] whole numbers in 0 … num_classes − 1, or None.
      num_classes: size of the declared label set, used when there are labels.
      image_shape: the declared shape; None declares the array's own.
      what: how messages name the images.
      invalid: what single records with unusable pixels or labels do: `refuse` all, or count as null records. Only with
        the latter is the guarantee about all data sets of these shapes; a warning, for the curator alone, counts them.

    Raises:
      InvalidInputError: naming what was found and what is accepted.
    """
    check_choice(get_args(Invalid), invalid=invalid)
    for array, named in ((images, what), (labels, "labels")):
        check(
            not isinstance(array, np.ma.MaskedArray),
            f"{named}: a masked array, whose mask nothing here reads: pass array.filled(value), or the records that have no "
            "masked entry.",
        )
    images = np.asarray(images)
    check(images.dtype.kind in "uf", f"{what} has dtype {images.dtype}: images are uint8 (0 to 255) or float (0 to 1).")
    check(
        images.dtype == np.uint8 or images.dtype.kind == "f",
        f"{what} has dtype {images.dtype}: whole-number images must be uint8.",
    )
    check(images.ndim in (3, 4), f"{what} has shape {images.shape}: images are [N, height, width(, channels)].")
    images = images[..., None] if images.ndim == 3 else images
    check(images.size > 0, f"{what} is empty ({times(images.shape)}): at least one record with a pixel is needed.")
    shape = tuple(images.shape[1:])
    check(
        image_shape is None or shape == tuple(image_shape),
        f"{what} holds images of {times(shape)}, not the declared {times(image_shape or ())}.",
    )
    if labels is not None:
        labels = np.asarray(labels)
        check(
            labels.ndim == 1 and len(labels) == len(images),
            f"labels have shape {labels.shape} for {len(images)} images: one whole number an image is needed "
            "(labels.ravel(), where they are a column).",
        )
        check(
            labels.dtype.kind in "ui",
            f"labels have dtype {labels.dtype}: whole numbers are needed (labels.astype(int), where they are).",
        )
    broken = np.zeros(len(images), bool)
    for found, words in _unusable(images, labels, num_classes, what):
        check(
            invalid == "null" or not found.any(),
            f'{words}, or count such as null records: invalid="null" (--invalid-records null).',
        )
        broken |= found
    if broken.any():
        warnings.warn(
            f"{broken.sum():,} of {len(broken):,} records are invalid and count as null. This number is private.",
            stacklevel=2,
        )
    num_null, held = int(broken.sum()), np.flatnonzero(~broken)
    usable = _as_uint8(images[held] if num_null else images)
    of_usable = None if labels is None else labels[held].astype(np.int32)
    records = Records(usable, of_usable, 0 if labels is None else num_classes, num_null, held)
    records._origin = _Origin(images)
    return records


def _unusable(
    images: np.ndarray, labels: np.ndarray | None, num_classes: int, what: str
) -> Iterator[tuple[np.ndarray, str]]:
    """Each thing that may be wrong with a record: whether it is, [N] booleans, and how to mend it."""
    if images.dtype.kind == "f":
        finite = np.isfinite(images).all(axis=(1, 2, 3))
        yield ~finite, f"{what} holds NaN or infinite pixels: mend or drop those images"
        in_range = images.min(axis=(1, 2, 3)) >= 0, images.max(axis=(1, 2, 3)) <= 1
        yield (
            finite & ~np.logical_and(*in_range),
            f"{what} holds float pixels outside [0, 1]: scale them, or pass uint8",
        )
    if labels is not None:
        outside = (labels < 0) | (labels >= num_classes)
        yield (
            outside,
            f"{outside.sum()} labels of {what} lie outside the declared label set 0 to {num_classes - 1}: declare more "
            "classes (--num-classes), mend the labels",
        )


def _as_uint8(images: np.ndarray) -> np.ndarray:
    return images if images.dtype == np.uint8 else np.round(images * FULL_SCALE).astype(np.uint8)


def resized(records: Records, image_shape: tuple[int, int, int]) -> Records:
    """*Public* records, their images scaled bilinearly to the height and width of `image_shape`."""
    if records.image_shape == image_shape:
        return records
    check(
        records.image_shape[2] == image_shape[2],
        f"public images have {records.image_shape[2]} channels, the records {image_shape[2]}: they must be alike.",
    )
    with records.opened() as (images, labels):
        pixels = tf.image.resize(tf.cast(images, tf.float32), image_shape[:2]).numpy()
        whole = np.clip(np.round(pixels), 0, FULL_SCALE).astype(np.uint8)
        scaled = Records(whole, labels if records.num_classes else None, records.num_classes)
    scaled._origin = records._origin
    return scaled
