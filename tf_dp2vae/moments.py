"""Counts, sums and second moments of classes: clipped row by row, added up, noised.

What the one-time mechanisms (`mechanisms`) compute, without opening a record or charging for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tf_dp2vae.randomness import on_grid, standard_normals

_DOUBTFUL = 3
"""A class of so many deviations of the counts' noise is trusted by half: an empty one is taken for as large once in 700."""


@dataclass(frozen=True)
class Moments:
    """A noised answer of `class_statistics`, `latent_moments` or `feature_means`, in natural units.

    Attributes:
      counts: [classes], or None where the weight of counts was 0.
      sums: [classes, d].
      seconds: [classes, e, e], or [1, e, e] where shared; symmetric; e = 0 where none were asked for.
      count_noise, sum_noise: standard deviation of the noise on each entry.
      second_noise: the same for diagonal entries; off the diagonal it is √2 smaller.
    """

    counts: np.ndarray | None
    sums: np.ndarray
    seconds: np.ndarray
    count_noise: float
    sum_noise: float
    second_noise: float

    def gaussians(self, classes: Classes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What sums and second moments of each class say of its Gaussian.

        Returns:
          Means [classes, d], drawn towards 0 where a class may be empty; covariances [classes, d, d]; and the standard
          deviation of the noise on the covariances' entries off the diagonal, [classes].
        """
        counts = classes.counts
        means = classes.trust[:, None] * self.sums / counts[:, None]
        covariances = self.seconds / counts[:, None, None] - np.einsum("ki,kj->kij", means, means)
        return means, covariances, self.second_noise / math.sqrt(2) / counts

    def classes(self) -> Classes:
        """What the counts say."""
        assert self.counts is not None
        raw = np.maximum(self.counts, 0.0)
        return Classes(
            np.maximum(raw, 1.0),
            raw / raw.sum() if raw.sum() > 0 else np.full(len(raw), 1 / len(raw)),
            raw / (raw + _DOUBTFUL * self.count_noise),
        )


class Classes(NamedTuple):
    """How large classes are, each [classes].

    Attributes:
      counts: noisy, at least 1.
      frequencies: probabilities.
      trust: from 0 for a class that may be empty to 1 for one whose count drowns the noise.
    """

    counts: np.ndarray
    frequencies: np.ndarray
    trust: np.ndarray


def clip_rows(rows: np.ndarray, bound: float) -> np.ndarray:
    """Rows, [n, d], scaled down to norm `bound` where they are longer."""
    with np.errstate(invalid="ignore"):  # non-finite rows become null records later
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        return rows * np.minimum(1.0, bound / np.maximum(norms, 1e-12))


def clipped_sums(
    first: np.ndarray,
    factor: np.ndarray,
    diagonal: np.ndarray,
    labels: np.ndarray,
    classes: int,
    bound: float,
    shared_second: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts, sums and second moments of some rows, of each class; rows that are not finite count as null records.

    Args:
      first: what is summed, [n, d], clipped already.
      factor, diagonal: m and s², [n, e]; a row's second moment is m mᵀ + diag(s²), clipped to norm `bound`².
      labels: [n], below `classes`.
      shared_second: one second moment for all classes.

    Returns:
      [classes], [classes, d] and [classes or 1, e, e], in float64.
    """
    finite = np.isfinite(first).all(1) & np.isfinite(factor).all(1) & np.isfinite(diagonal + factor).all(1)
    first, factor = np.where(finite[:, None], first, 0.0), np.where(finite[:, None], factor, 0.0)
    diagonal = np.where(finite[:, None], np.broadcast_to(diagonal, factor.shape), 0.0)
    member = np.eye(classes)[labels] * finite[:, None]
    shrink = _second_moment_clip(factor, diagonal, bound)
    groups = finite[:, None].astype(float) if shared_second else member
    seconds = np.stack([_second_moment(factor, diagonal, shrink * group) for group in groups.T])
    return member.sum(0), member.T @ first.astype(np.float64), seconds


def noised_moments(
    counts: np.ndarray,
    sums: np.ndarray,
    seconds: np.ndarray,
    deviation: float,
    bound: float,
    weights: tuple[float, float, float],
    random: np.random.Generator,
) -> Moments:
    """Adds N(0, deviation²) in the units of the contribution, and gives everything in its own units.

    Args:
      counts, sums, seconds: as `clipped_sums` gives them.
      deviation: of the noise on (a·count, b·sum/R, c·second/R²).
      bound: R.
      weights: (a, b, c); 0 for what was not asked for.
      random: private.
    """
    scales = [
        deviation * unit / weight if weight else math.inf for unit, weight in zip((1.0, bound, bound**2), weights)
    ]
    on_counts, on_sums, on_seconds = scales

    def noised(total: np.ndarray, stddev: float) -> np.ndarray:
        if not total.size:  # seconds that were not asked for: their weight is 0, their deviation infinite
            return total
        return on_grid(total + stddev * standard_normals(random, *total.shape), stddev)

    # Each entry off the diagonal is answered once and mirrored: rounding may have made its two truths differ.
    upper = np.triu(noised(seconds, on_seconds / math.sqrt(2)), 1)
    diagonal = noised(np.diagonal(seconds, axis1=1, axis2=2), on_seconds)
    return Moments(
        noised(counts, on_counts) if math.isfinite(on_counts) else None,
        noised(sums, on_sums),
        upper + np.swapaxes(upper, 1, 2) + diagonal[..., None] * np.eye(seconds.shape[-1]),
        on_counts,
        on_sums,
        on_seconds,
    )


def _second_moment_clip(factor: np.ndarray, diagonal: np.ndarray, bound: float) -> np.ndarray:
    """For each row the scale that keeps ‖m mᵀ + diag(s²)‖ within R²."""
    m2 = np.square(factor)
    frobenius = np.sqrt(np.square(m2.sum(1)) + 2 * (m2 * diagonal).sum(1) + np.square(diagonal).sum(1))
    return np.minimum(1.0, bound**2 / np.maximum(frobenius, 1e-12))


def _second_moment(factor: np.ndarray, diagonal: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Σ_i w_i (m_i m_iᵀ + diag(s_i²)), in float64."""
    factor, diagonal = factor.astype(np.float64), diagonal.astype(np.float64)
    return (factor * weights[:, None]).T @ factor + np.diag(weights @ diagonal)
