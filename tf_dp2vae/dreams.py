"""Dreams: samples of a generator that noisily released statistics define.

Two releases, both Gaussian mechanisms over all records, both small beside the noise that DP-SGD needs:

  1. `class statistics`: counts, class means, and the shared second moment of the images' lowest spatial frequencies (a
     constant DCT basis; frequencies concentrate an image's energy better than pooled pixels do at equal dimension).
     The principal components of its within-class part that do not drown in the noise are kept.
  2. `dream moments`: per class the mean and second moment of each image's coordinates on those components. It is the
     latent-moments mechanism with a linear encoder.

Where a class has too few records to see its covariance through the noise, the shared one stands in, entry by entry (an
empirical-Bayes gain, the Wiener filter's). Everything here is post-processing: no record is touched.

Reference: the linear-Gaussian model is probabilistic PCA with a covariance for each class (Tipping and Bishop 1999);
warm starts from noisy statistics as in FETA (2025).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.fft import dct

from tf_dp2vae.moments import Classes, Moments

_IMAGE_BOUND = 10 / 28
"""Bound on an image's norm, for each √pixel: 10 for 28×28."""
_EDGE_SHARE = 0.5
"""Components above this part of the noise edge are kept: the second release looks at each again, with less noise."""
_DEVIATION_SHARE = 0.03
"""κ: how far a class's covariance strays from the shared one, as a fraction of it; from other image data, not records."""


@dataclass(frozen=True)
class DreamGenerator:
    """x = μ_y + B f with f ~ N(m_y, S_y), clipped to [0, 1].

    Attributes:
      means: μ, [classes, pixels].
      basis: B, [pixels, d], orthonormal columns.
      factor_means: m, [classes, d].
      factor_scales: lower-triangular factors of S, [classes, d, d].
      classes: how large they are.
      image_shape: (height, width, channels).
    """

    means: np.ndarray
    basis: np.ndarray
    factor_means: np.ndarray
    factor_scales: np.ndarray
    classes: Classes
    image_shape: tuple[int, int, int]

    @property
    def frequencies(self) -> np.ndarray:
        """[classes], probabilities."""
        return self.classes.frequencies

    @property
    def spread(self) -> np.ndarray:
        """Standard deviation of each coordinate over all classes, [d]."""
        variances = np.square(self.factor_scales).sum(2) + np.square(self.factor_means)
        return np.sqrt(self.frequencies @ variances)

    def sample(self, labels: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Images [n, height, width, channels] in [0, 1], float32, for labels [n]."""
        noise = random.standard_normal((len(labels), self.basis.shape[1]))
        factors = self.factor_means[labels] + np.einsum("nij,nj->ni", self.factor_scales[labels], noise)
        flat = self.means[labels] + factors @ self.basis.T
        return np.clip(flat, 0.0, 1.0).reshape(-1, *self.image_shape).astype(np.float32)

    def sample_labels(self, num: int, random: np.random.Generator) -> np.ndarray:
        """Labels [num] at the noisy frequencies."""
        return random.choice(len(self.frequencies), num, p=self.frequencies)


def frequency_basis(image_shape: tuple[int, int, int], per_axis: int) -> np.ndarray:
    """The `per_axis`² lowest spatial frequencies of each channel, [pixels, per_axis²·channels], orthonormal (DCT-II)."""
    height, width, channels = image_shape
    rows = dct(np.eye(height), axis=0, norm="ortho")[:per_axis]
    columns = dct(np.eye(width), axis=0, norm="ortho")[:per_axis]
    basis = np.einsum("ih,jw,cd->hwdijc", rows, columns, np.eye(channels))
    return basis.reshape(height * width * channels, -1)


def statistics_basis(image_shape: tuple[int, int, int]) -> np.ndarray:
    """Q, the frequencies whose second moments are released: at most 12 an axis, 7 an axis where there are colours."""
    at_most = 12 if image_shape[2] == 1 else 7
    return frequency_basis(image_shape, min(at_most, *image_shape[:2]))


def image_bound(image_shape: tuple[int, int, int]) -> float:
    """R, the bound on an image's norm in the class statistics."""
    return _IMAGE_BOUND * math.sqrt(math.prod(image_shape))


@dataclass(frozen=True)
class Components:
    """What the first release tells: class means and sizes, and the directions in which records vary.

    Attributes:
      means: [classes, pixels].
      classes: how large they are.
      basis: [pixels, d], the principal components kept; d ≥ 1.
    """

    means: np.ndarray
    classes: Classes
    basis: np.ndarray


def components(statistics: Moments, basis: np.ndarray, at_most: int) -> Components:
    """Principal components of the within-class covariance that stand above half the noise edge, 2·√d·σ."""
    counts, frequencies, trust = classes = statistics.classes()
    # The noise on a mean is white, the mean itself smooth: keep its low frequencies.
    sums = statistics.sums @ basis
    # A class that may be empty gets the overall mean instead of noise divided by a count near zero.
    projected = trust[:, None] * sums / counts[:, None] + (1 - trust[:, None]) * sums.sum(0) / counts.sum()
    within = statistics.seconds[0] / counts.sum() - (projected.T * frequencies) @ projected
    values, vectors = np.linalg.eigh(within)
    # Entries off the diagonal carry second_noise/√2; the largest eigenvalue of such noise is about 2·√d times that.
    edge = 2 * np.sqrt(len(values)) * statistics.second_noise / np.sqrt(2) / counts.sum()
    keep = max(1, min(at_most, int((values > _EDGE_SHARE * edge).sum())))
    return Components(projected @ basis.T, classes, basis @ vectors[:, ::-1][:, :keep])


def generator(found: Components, moments: Moments, image_shape: tuple[int, int, int]) -> DreamGenerator:
    """The generator that both releases define."""
    means, covariances, noise = moments.gaussians(found.classes)
    scales = np.linalg.cholesky(shrunk_covariances(covariances, noise, found.classes.frequencies))
    return DreamGenerator(found.means, found.basis, means, scales, found.classes, image_shape)


def shrunk_covariances(covariances: np.ndarray, noise: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    """Each class's covariance, drawn towards the shared one as far as its noise demands; positive definite.

    In the shared covariance's eigenbasis (eigenvalues λ) the class's deviation has variance κ·λ_i·λ_j a priori and noise
    variance τ²·(1 + [i = j]), so the best linear estimate keeps κλ_iλ_j / (κλ_iλ_j + τ²(1 + [i = j])) of it.

    Args:
      covariances: [classes, d, d], noisy.
      noise: τ, [classes], standard deviation of the noise off the diagonal.
      frequencies: [classes], weights of the shared covariance.
    """
    d = covariances.shape[-1]
    values, vectors = np.linalg.eigh(np.einsum("k,kij->ij", frequencies, covariances))
    floor = 1e-3 * max(values.max(), 1e-9)
    values = np.maximum(values, floor)
    rotated = vectors.T @ covariances @ vectors
    prior = _DEVIATION_SHARE * np.outer(values, values)
    spread = np.square(noise)[:, None, None] * (1 + np.eye(d))
    estimate = np.diag(values) + prior / (prior + spread) * (rotated - np.diag(values))
    own_values, own_vectors = np.linalg.eigh(estimate)
    clipped = own_vectors * np.maximum(own_values, floor)[:, None, :] @ np.swapaxes(own_vectors, 1, 2)
    return vectors @ clipped @ vectors.T
