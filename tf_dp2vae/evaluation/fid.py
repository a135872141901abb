"""FID and KID: how far two sets of features lie apart.

References: Heusel, Ramsauer, Unterthiner, Nessler, Hochreiter 2017 (FID); Bińkowski, Sutherland, Arbel, Gretton 2018 (KID).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import linalg

from tf_dp2vae.validation import check

_DEGREE = 3
_MOST_PAIRS = 2 * 10_000**2
"""Pairs within both sets whose kernels are kept at once: 2.4 GB."""


@dataclass(frozen=True)
class KernelDistance:
    """KID.

    Attributes:
      mean: of the unbiased squared MMD over subsets; may fall below 0 for equal distributions.
      deviation: its standard deviation over subsets.
      subsets: how many.
      subset_size: images a side in each subset.
    """

    mean: float
    deviation: float
    subsets: int
    subset_size: int


def fid(first: np.ndarray, second: np.ndarray) -> float:
    """Fréchet distance between the Gaussians that have the features' means and covariances.

    It shrinks as the sets grow, even where the distributions are equal: never quote it without both sizes.

    Args:
      first: features [n, d].
      second: features [m, d].

    Raises:
      InvalidInputError: a set has fewer than two rows.
    """
    check(
        min(len(first), len(second)) >= 2,
        f"FID of {len(first)} against {len(second)} images: each side needs at least 2.",
    )
    return frechet_distance(*_mean_and_factor(first), *_mean_and_factor(second))


def frechet_distance(mean: np.ndarray, factor: np.ndarray, other_mean: np.ndarray, other_factor: np.ndarray) -> float:
    """‖μ − μ′‖² + tr(Σ + Σ′ − 2(ΣΣ′)^½), the squared 2-Wasserstein distance of two Gaussians.

    tr((ΣΣ′)^½) is the sum of the singular values of FᵀF′ for any factors Σ = FFᵀ and Σ′ = F′F′ᵀ. Taken so, nothing is
    squared, no complex root appears, and singular covariances, as those of fewer images than dimensions, need no ridge.

    Args:
      mean, other_mean: [d].
      factor, other_factor: [d, any].
    """
    cross = np.sum(linalg.svdvals(factor.T @ other_factor))
    distance = np.square(mean - other_mean).sum() + np.square(factor).sum() + np.square(other_factor).sum() - 2 * cross
    return float(max(distance, 0.0))


def kid(
    first: np.ndarray, second: np.ndarray, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> KernelDistance:
    """Unbiased squared MMD with the kernel (x·y/d + 1)³, averaged over random subsets.

    Args:
      first: features [n, d].
      second: features [m, d].
      subsets: how many pairs of subsets. One, of all images, where neither set has more than a subset takes.
      subset_size: images a side in each; fewer where a set is smaller.
      seed: of the subsets.
    """
    size = min(subset_size, len(first), len(second))
    check(size >= 2, f"KID of {len(first)} against {len(second)} images: each side needs at least 2.")
    random = np.random.default_rng(seed)
    if size == max(len(first), len(second)):
        subsets = 1
    drawn = [
        [random.choice(len(features), size, replace=False) for features in (first, second)] for _ in range(subsets)
    ]
    # Small sets have fewer pairs than all their subsets together: each is taken once.
    if len(first) ** 2 + len(second) ** 2 <= min(_MOST_PAIRS, 2 * subsets * size**2):
        whole = _kernels(first, second)
        values = [
            _squared_mmd(*(kernel[np.ix_(*pair)] for kernel, pair in zip(whole, ((i, i), (j, j), (i, j)))))
            for i, j in drawn
        ]
    else:
        values = [_squared_mmd(*_kernels(first[i], second[j])) for i, j in drawn]
    return KernelDistance(float(np.mean(values)), float(np.std(values)), subsets, size)


def _mean_and_factor(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean, and F with FFᵀ = the unbiased covariance: centred features, or what QR leaves of many."""
    wide = np.asarray(features, np.float64)
    mean = wide.mean(0)
    factor = (wide - mean) / np.sqrt(len(wide) - 1)
    if len(wide) > wide.shape[1]:
        factor = np.asarray(np.linalg.qr(factor, mode="r"))
    return mean, factor.T


def _kernels(first: np.ndarray, second: np.ndarray) -> list[np.ndarray]:
    """(x·y/d + 1)³ within the first set, within the second, and between."""
    a, b = (features.astype(np.float64) / np.sqrt(features.shape[1]) for features in (first, second))
    return [(x @ y.T + 1.0) ** _DEGREE for x, y in ((a, a), (b, b), (a, b))]


def _squared_mmd(within: np.ndarray, within_other: np.ndarray, between: np.ndarray) -> float:
    size = len(between)

    def off_diagonal(gram: np.ndarray) -> float:
        return (gram.sum() - np.trace(gram)) / (size * (size - 1))

    return off_diagonal(within) + off_diagonal(within_other) - 2 * between.mean()
