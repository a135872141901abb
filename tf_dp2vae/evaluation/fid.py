"""FID and KID: how far two sets of features lie apart.

References: Heusel, Ramsauer, Unterthiner, Nessler, Hochreiter 2017 (FID); Bińkowski, Sutherland, Arbel, Gretton 2018 (KID).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import linalg

from tf_dp2vae.validation import check

_DEGREE = 3


@dataclass(frozen=True)
class KernelDistance:
    """KID.

    Attributes:
      mean: of the unbiased squared MMD over subsets; may fall below 0 for equal distributions.
      deviation: its standard deviation over subsets.
      subset_size: images a side in each subset.
    """

    mean: float
    deviation: float
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
    return frechet_distance(*_moments(first), *_moments(second))


def frechet_distance(
    mean: np.ndarray, covariance: np.ndarray, other_mean: np.ndarray, other_covariance: np.ndarray
) -> float:
    """‖μ − μ′‖² + tr(Σ + Σ′ − 2(ΣΣ′)^½), the squared 2-Wasserstein distance of two Gaussians.

    tr((ΣΣ′)^½) is the sum of the singular values of Σ^½Σ′^½. Taken so, nothing is squared, no complex root appears, and
    covariances of fewer images than dimensions, which are singular, need no ridge.

    Args:
      mean, other_mean: [d].
      covariance, other_covariance: [d, d], symmetric and positive semi-definite.
    """
    cross = linalg.svdvals(_root(covariance).T @ _root(other_covariance)).sum()
    distance = np.square(mean - other_mean).sum() + np.trace(covariance) + np.trace(other_covariance) - 2 * cross
    return float(max(distance, 0.0))


def kid(
    first: np.ndarray, second: np.ndarray, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> KernelDistance:
    """Unbiased squared MMD with the kernel (x·y/d + 1)³, averaged over random subsets.

    Args:
      first: features [n, d].
      second: features [m, d].
      subsets: how many pairs of subsets.
      subset_size: images a side in each; fewer where a set is smaller.
      seed: of the subsets.
    """
    size = min(subset_size, len(first), len(second))
    check(size >= 2, f"KID of {len(first)} against {len(second)} images: each side needs at least 2.")
    random = np.random.default_rng(seed)
    values = [
        _squared_mmd(*(features[random.choice(len(features), size, replace=False)] for features in (first, second)))
        for _ in range(subsets)
    ]
    return KernelDistance(float(np.mean(values)), float(np.std(values)), size)


def _moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    wide = np.asarray(features, np.float64)
    return wide.mean(0), np.cov(wide, rowvar=False).reshape(wide.shape[1], wide.shape[1])


def _root(covariance: np.ndarray) -> np.ndarray:
    """R with RRᵀ = Σ. Rounding leaves eigenvalues just below 0, which are 0."""
    values, vectors = linalg.eigh(covariance)
    return vectors * np.sqrt(np.maximum(values, 0.0))


def _squared_mmd(first: np.ndarray, second: np.ndarray) -> float:
    size, dimensions = first.shape

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a.astype(np.float64) @ b.astype(np.float64).T / dimensions + 1.0) ** _DEGREE

    def off_diagonal(gram: np.ndarray) -> float:
        return (gram.sum() - np.trace(gram)) / (size * (size - 1))

    return off_diagonal(kernel(first, first)) + off_diagonal(kernel(second, second)) - 2 * kernel(first, second).mean()
