"""Where latents come from when the released decoder samples: p(z|y).

The aggregated posterior of a trained encoder is not N(0, I), so sampling from N(0, I) shows the decoder latents that it
never met. A class-conditional Gaussian, fitted to one noisy release of latent moments, closes most of that gap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from tf_dp2vae.accounting import LATENT_MOMENTS
from tf_dp2vae.configuration import Configuration
from tf_dp2vae.dreams import shrunk_covariances
from tf_dp2vae.moments import Classes, Moments
from tf_dp2vae.objectives import bounded
from tf_dp2vae.records import Records
from tf_dp2vae.validation import check_between, check_positive

if TYPE_CHECKING:
    from tf_dp2vae.model import DP2VAE


@keras.saving.register_keras_serializable("tf_dp2vae")
class LatentPrior(keras.Layer):
    """A Gaussian for each class, N(0, I) until `assign` is called, and how often each class occurs.

    Attributes:
      means: [classes, latent].
      scales: [classes, latent, latent], lower-triangular factors of the covariances.
      frequencies: [classes], probabilities.
      counted: how many records the frequencies were counted from, with noise; 0 where nothing counted them.
      temperature: scalar that a sample's distance from its class's mean is multiplied by.
    """

    def __init__(self, latent_dim: int, num_classes: int = 1, **kwargs: Any):
        """A standard normal for each of `num_classes` classes (1 for unlabelled records), all equally frequent."""
        super().__init__(**{**kwargs, "trainable": False})
        self.latent_dim, self.num_classes = latent_dim, num_classes
        shape = (num_classes, latent_dim)
        self.means = self.add_weight(shape=shape, initializer="zeros", trainable=False, name="means")
        self.scales = self.add_weight(shape=(*shape, latent_dim), initializer="zeros", trainable=False, name="scales")
        self.frequencies = self.add_weight(
            shape=(num_classes,), initializer="ones", trainable=False, name="frequencies"
        )
        self.counted = self.add_weight(shape=(), initializer="zeros", trainable=False, name="counted")
        self.temperature = self.add_weight(shape=(), initializer="ones", trainable=False, name="temperature")
        self.scales.assign(np.broadcast_to(np.eye(latent_dim), self.scales.shape))
        self.frequencies.assign(np.full(num_classes, 1 / num_classes))
        self.built = True

    def assign(self, means: np.ndarray, covariances: np.ndarray) -> None:
        """Sets the Gaussians; covariances [classes, latent, latent] must be positive definite."""
        self.means.assign(means)
        self.scales.assign(np.linalg.cholesky(covariances))

    def count(self, classes: Classes) -> None:
        """Sets the frequencies, and what they were counted from."""
        self.frequencies.assign(classes.frequencies)
        self.counted.assign(classes.counts.sum())

    def sample(self, labels: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """z ~ p(z|y) at the temperature, [examples, latent], for labels [examples] and a stateless seed [2]."""
        noise = tf.random.stateless_normal([tf.shape(labels)[0], self.latent_dim], seed)
        means, scales = tf.gather(self.means.value, labels), tf.gather(self.scales.value, labels)
        return means + self.temperature.value * tf.linalg.matvec(scales, noise)

    def sample_labels(self, num: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """y ~ p(y), [num] int32, for a stateless seed [2]."""
        logits = tf.math.log(self.frequencies.value)[None]
        return tf.random.stateless_categorical(logits, num, seed, dtype=tf.int32)[0]

    def get_config(self) -> dict[str, Any]:
        """Keras's, with the sizes."""
        return {**super().get_config(), "latent_dim": self.latent_dim, "num_classes": self.num_classes}


PRIOR_WEIGHTS = (0.25, 0.5, 1.0)
"""(a, b, c): of a record's count, sum and second moment in its bounded contribution. Covariances need most: the noise of
theirs lies on d² numbers."""


@dataclass(frozen=True)
class Prior(Configuration):
    """How the latent prior comes about after training."""

    @property
    def shares(self) -> dict[str, float]:
        """The share of the budget that its release takes."""
        return {}

    def describe(self) -> str:
        """A few words for the progress."""
        raise NotImplementedError

    def fit(self, model: DP2VAE, records: Records) -> None:
        """Sets the model's latent prior."""
        raise NotImplementedError


@keras.saving.register_keras_serializable("tf_dp2vae")
@dataclass(frozen=True)
class NormalPrior(Prior):
    """N(0, I) for every class; no release. Class frequencies stay what pre-training released, else uniform."""

    def describe(self) -> str:
        return "latent prior: N(0, I)"

    def fit(self, model: DP2VAE, records: Records) -> None:
        pass


@keras.saving.register_keras_serializable("tf_dp2vae")
@dataclass(frozen=True)
class GaussianPrior(Prior):
    """A Gaussian for each class from one noisy release of latent moments; covariance drawn towards the shared one.

    Attributes:
      share: part of the budget.
      clip: bound on the norm of a record's latent mean, in units of √latent_dim. Clipping the far fifth of the records
        is worth it: covariances, which samples need most, then come with half the noise.
    """

    share: float = 0.05
    clip: float = 1.4

    def __post_init__(self) -> None:
        check_between(0, 1, share=self.share)
        check_positive(clip=self.clip)

    @property
    def shares(self) -> dict[str, float]:
        return {LATENT_MOMENTS: self.share}

    def describe(self) -> str:
        return "latent prior: a Gaussian for each class, from noisy latent moments"

    def fit(self, model: DP2VAE, records: Records) -> None:
        assert model.plan is not None
        encode = tf.function(model.encode, jit_compile=model.jit_compile, reduce_retracing=True, autograph=False)

        def posterior(images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            mean, log_variance = encode(tf.constant(images), tf.constant(labels))
            return mean.numpy(), np.exp(bounded(log_variance).numpy())

        bound = self.clip * np.sqrt(model.latent_dim)
        moments = model.mechanisms.latent_moments(
            records, model.plan.release(LATENT_MOMENTS), posterior, bound, PRIOR_WEIGHTS, shared_second=False
        )
        assign_moments(model.latent_prior, moments)


def assign_moments(prior: LatentPrior, moments: Moments) -> None:
    """Sets the prior's Gaussians and frequencies from moments with counts, trusting each as far as its noise allows."""
    classes = moments.classes()
    means, covariances, noise = moments.gaussians(classes)
    prior.assign(means, shrunk_covariances(covariances, noise, classes.frequencies))
    prior.count(classes)
