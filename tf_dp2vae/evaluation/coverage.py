"""Precision, recall, density and coverage: are samples like real images, and are all real images like some sample?

Each is a count of points that fall into balls around the points of the other set, a ball reaching to its centre's k-th
nearest neighbour in its own set.

References: Kynkäänniemi, Karras, Laine, Lehtinen, Aila 2019 (precision, recall); Naeem, Oh, Uh, Choi, Yoo 2020 (density,
coverage; k = 5 is theirs).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import pairwise_distances_chunked

from tf_dp2vae.validation import check

NEIGHBOURS = 5


@dataclass(frozen=True)
class Coverage:
    """Shares in [0, 1], density excepted, which may exceed 1.

    Attributes:
      precision: of samples that lie in some real image's ball.
      recall: of real images that lie in some sample's ball.
      density: real balls that a sample lies in, over k, on average.
      coverage: of real images with a sample in their ball.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def coverage(real: np.ndarray, samples: np.ndarray, neighbours: int = NEIGHBOURS) -> Coverage:
    """All four, in one pass over the distances between the sets.

    Args:
      real: features [n, d] of real images.
      samples: features [m, d] of samples.
      neighbours: k.

    Raises:
      InvalidInputError: a set has no k-th neighbour.
    """
    check(
        min(len(real), len(samples)) > neighbours,
        f"{len(samples)} samples against {len(real)} images: more than {neighbours} on each side are needed.",
    )
    real_radii, sample_radii = _radii(real, neighbours), _radii(samples, neighbours)
    precise, balls = 0, 0
    recalled = np.zeros(len(real), bool)
    nearest = np.full(len(real), np.inf)
    for start, distances in _chunks(samples, real):
        inside = distances < real_radii
        precise += int(inside.any(1).sum())
        balls += int(inside.sum())
        recalled |= (distances < sample_radii[start : start + len(distances), None]).any(0)
        nearest = np.minimum(nearest, distances.min(0))
    return Coverage(
        precision=precise / len(samples),
        recall=float(recalled.mean()),
        density=balls / (neighbours * len(samples)),
        coverage=float((nearest < real_radii).mean()),
    )


def _radii(features: np.ndarray, neighbours: int) -> np.ndarray:
    """Distance of each point to its k-th nearest other."""
    parts = [
        # The point itself is the nearest, at distance 0: the k-th other is at position k.
        np.partition(distances, neighbours, axis=1)[:, neighbours]
        for _, distances in _chunks(features, features)
    ]
    return np.concatenate(parts)


def _chunks(first: np.ndarray, second: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Distances of a few rows at a time, with the first row's number, in some hundred megabytes."""
    start = 0
    for distances in pairwise_distances_chunked(first, second, working_memory=256):
        yield start, distances
        start += len(distances)
