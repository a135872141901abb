"""Runs of bytes that tell where they come from, and a search for many thousands of them at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

RUN = 32
"""Bytes of a run: eight float32 numbers, or a good part of a row of pixels."""
_TELLING = 6
"""Different values in a run, below which it may stand anywhere by chance."""
_BASE = np.uint64(0x9E3779B97F4A7C15)
_PIECE = 1 << 22


@dataclass(frozen=True)
class ByteRuns:
    """Runs of equal length.

    Attributes:
      what: what they are, in messages.
      runs: [n, length], uint8; the length is a power of two.
    """

    what: str
    runs: np.ndarray

    def found_in(self, content: bytes) -> bool:
        """Whether any of the runs stands anywhere in the content (Rabin and Karp 1987, all positions at once)."""
        length = self.runs.shape[1]
        if len(self.runs) == 0 or len(content) < length:
            return False
        wanted = np.unique(_hashes(self.runs.astype(np.uint64))[:, 0])
        known = {run.tobytes() for run in self.runs}
        data = np.frombuffer(content, np.uint8)
        for start in range(0, len(data) - length + 1, _PIECE):
            piece = data[start : start + _PIECE + length - 1]
            hashes = _hashes(piece.astype(np.uint64)[None], length)[0]
            nearest = wanted[np.minimum(np.searchsorted(wanted, hashes), len(wanted) - 1)]
            for position in np.flatnonzero(nearest == hashes):
                if piece[position : position + length].tobytes() in known:
                    return True
        return False


def _hashes(data: np.ndarray, length: int | None = None) -> np.ndarray:
    """Polynomial hashes of all runs of `length` bytes (default: the whole row) in each row, modulo 2⁶⁴, by doubling."""
    length = length or data.shape[1]
    hashes, covered, power = data + np.uint64(1), 1, _BASE
    with np.errstate(over="ignore"):
        while covered < length:
            hashes = hashes[:, :-covered] * power + hashes[:, covered:]
            covered, power = 2 * covered, power * power
    return hashes


def variables_as_runs(what: str, variables: list[np.ndarray], but_not: list[np.ndarray]) -> ByteRuns:
    """Eight consecutive numbers each, from all over the variables, where they are telling and not in others as well.

    Args:
      what: names the finding.
      variables: must not be found.
      but_not: may be found; an optimizer's weight average equals them, for example.
    """
    may = {run.tobytes() for run in _float_runs(but_not)}
    runs = [run for run in _float_runs(variables) if run.tobytes() not in may]
    return ByteRuns(what, np.array(runs, np.uint8).reshape(-1, RUN))


def _float_runs(variables: list[np.ndarray]) -> np.ndarray:
    flat = [np.asarray(v, np.float32).ravel() for v in variables if np.asarray(v).dtype.kind == "f"]
    rows = [v[: v.size // 8 * 8].reshape(-1, 8) for v in flat if v.size >= 8]
    numbers = np.concatenate(rows) if rows else np.zeros((0, 8), np.float32)
    return np.ascontiguousarray(numbers[_distinct(numbers) >= _TELLING]).view(np.uint8).reshape(-1, RUN)


def records_as_runs(images: np.ndarray) -> tuple[list[ByteRuns], list[ByteRuns]]:
    """The middle of the liveliest row of each image: as it would stand in a file, and in the pixels of a picture.

    Args:
      images: [n, height, width, channels], uint8. Images without six different pixels there tell nothing.
    """
    starts = range(0, max(len(images), 1), 2048)  # all may be null records, and then none is held
    pixels = np.concatenate([_liveliest(images[start : start + 2048]) for start in starts])
    floats = _middle(pixels, RUN // 4).astype(np.float32) / np.float32(255)
    floats = np.ascontiguousarray(floats[_distinct(floats) >= _TELLING]).view(np.uint8)
    pixels = pixels[_distinct(pixels) >= _TELLING]
    # Drawing libraries cut floats to bytes instead of rounding them, which lowers some pixels by one.
    levels = np.arange(256)
    grey = [levels.astype(np.float32) / np.float32(255), levels / 255, np.linspace(0, 1, 256)]
    cut = [(values * values.dtype.type(255)).astype(np.uint8)[pixels] for values in grey]
    in_pictures = ByteRuns("a record's pixels", np.unique(np.concatenate([pixels, *cut]), axis=0))
    return [ByteRuns("a record", pixels), ByteRuns("a record", floats)], [in_pictures]


def _liveliest(images: np.ndarray) -> np.ndarray:
    rows = images.reshape(*images.shape[:2], math.prod(images.shape[2:]))
    chosen = rows[np.arange(len(rows)), rows.astype(np.float32).std(axis=2).argmax(axis=1)]
    return _middle(chosen, 1 << int(np.log2(min(RUN, rows.shape[2]))))


def _middle(rows: np.ndarray, length: int) -> np.ndarray:
    length = min(length, rows.shape[1])
    start = (rows.shape[1] - length) // 2
    return rows[:, start : start + length]


def _distinct(rows: np.ndarray) -> np.ndarray:
    """How many different values each row has."""
    ordered = np.sort(rows, axis=1)
    return 1 + (ordered[:, 1:] != ordered[:, :-1]).sum(axis=1) if rows.shape[1] else np.zeros(len(rows), int)
