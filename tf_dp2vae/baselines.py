"""What the method is measured against: the class statistics without any VAE, and the VAE without any privacy.

| class             | what is released                                             | guarantee   |
|-------------------|--------------------------------------------------------------|-------------|
| `StatisticsAlone` | the linear generator behind `Dreams`, the whole budget on it | end to end  |
| `NotPrivate`      | encoder, decoder and prior fitted to the records themselves  | none at all |

Both are the whole training: no private step follows, and the latent prior is theirs. Whatever reads records without noise
lies in `NotPrivate` and goes through `unprotected_batches`; no mechanism has a noiseless variant.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import keras
import numpy as np
import tensorflow as tf

from tf_dp2vae.contrast import mean_energy
from tf_dp2vae.mechanisms import Features
from tf_dp2vae.moments import Moments
from tf_dp2vae.objectives import bounded
from tf_dp2vae.pretraining import Dreams, WithoutNoise, look_along
from tf_dp2vae.priors import assign_moments
from tf_dp2vae.records import Records
from tf_dp2vae.sampling import unit_interval, unprotected_batches
from tf_dp2vae.validation import check

if TYPE_CHECKING:
    from tf_dp2vae.model import DP2VAE

_BATCH = 256
_COMPONENTS = Dreams.components
_DARKEST = 1e-6
"""How near to black or white a logit can come; a hundredth of what 8 bits tell apart."""
_HARDLY_ANY = 1e-9
"""Stands for the noise of exact moments, where none would divide zero by zero."""


@keras.saving.register_keras_serializable("tf_dp2vae")
class LinearImage(keras.Layer):
    """Logits of x = μ_y + B f, clipped to [0, 1]: the decoder of probabilistic PCA. Nothing in it is trained.

    Reference: Tipping and Bishop 1999.
    """

    def __init__(self, image_shape: tuple[int, int, int], components: int, num_classes: int, **kwargs: Any):
        """Args: (height, width, channels); size of f; of the label set, 0 without labels."""
        super().__init__(**{**kwargs, "trainable": False})
        self.image_shape, self.components, self.num_classes = tuple(image_shape), components, num_classes
        pixels = math.prod(self.image_shape)
        self.means = self.add_weight(
            shape=(max(num_classes, 1), pixels), initializer="zeros", trainable=False, name="means"
        )
        self.basis = self.add_weight(shape=(pixels, components), initializer="zeros", trainable=False, name="basis")
        self.built = True

    def assign(self, means: np.ndarray, basis: np.ndarray) -> None:
        """Sets μ, [classes, pixels], and B, [pixels, at most `components`]; directions beyond it are zero."""
        wide = np.zeros(self.basis.shape, np.float32)
        wide[:, : basis.shape[1]] = basis
        self.means.assign(means)
        self.basis.assign(wide)

    def call(self, factors: tf.Tensor, label: tf.Tensor | None = None) -> tf.Tensor:
        """[examples, components] and one-hot labels → [examples, height, width, channels]."""
        means = self.means.value if label is None else tf.matmul(label, self.means.value)
        flat = means + tf.matmul(factors, self.basis.value, transpose_b=True)
        image = tf.clip_by_value(flat, _DARKEST, 1 - _DARKEST)
        return tf.reshape(tf.math.log(image) - tf.math.log1p(-image), [-1, *self.image_shape])

    def get_config(self) -> dict[str, Any]:
        """Keras's, with the sizes."""
        sizes = {"image_shape": self.image_shape, "components": self.components, "num_classes": self.num_classes}
        return {**super().get_config(), **sizes}


def build_linear_decoder(image_shape: tuple[int, int, int], components: int, num_classes: int = 0) -> keras.Model:
    """The linear generator as a decoder: [factors] or [factors, label] → logits; for `StatisticsAlone`."""
    latent, label = keras.Input((components,), name="latent"), keras.Input((num_classes,), name="label")
    linear = LinearImage(image_shape, components, num_classes, name="linear")
    if not num_classes:
        return keras.Model(latent, linear(latent), name="decoder")
    return keras.Model([latent, label], linear(latent, label), name="decoder")


@keras.saving.register_keras_serializable("tf_dp2vae")
@dataclass(frozen=True)
class StatisticsAlone(Dreams):
    """Dreams from which nobody learns: their generator is released itself. Takes a decoder of `build_linear_decoder`.

    Both releases keep the ratio of their shares and take the whole budget between them.
    """

    is_whole_training: ClassVar[bool] = True
    is_refined: ClassVar[bool] = False

    @property
    def shares(self) -> dict[str, float]:
        shares = super().shares
        return {name: share / sum(shares.values()) for name, share in shares.items()}

    def describe(self) -> str:
        return "statistics: the release is a linear generator, made of noisily released class statistics alone"

    def run(self, model: DP2VAE, records: Records) -> None:
        linear = [layer for layer in model.decoder.layers if isinstance(layer, LinearImage)]
        check(
            len(linear) == 1 and linear[0].components >= self.components,
            f"statistics alone are released by a linear decoder: build it with build_linear_decoder(image_shape, "
            f"{self.components}, num_classes).",
        )
        dreamer = self.release(model, records)
        linear[0].assign(dreamer.means, dreamer.basis)
        used, prior = dreamer.basis.shape[1], model.latent_prior
        means, covariances = np.zeros(prior.means.shape), np.tile(np.eye(prior.latent_dim), (prior.num_classes, 1, 1))
        means[:, :used] = dreamer.factor_means
        covariances[:, :used, :used] = dreamer.factor_scales @ np.swapaxes(dreamer.factor_scales, 1, 2)
        prior.assign(means, covariances)
        prior.count(dreamer.classes)
        # The generator has the released moments by construction; what its samples' energy differs by is noise.
        model.contrast.energy.assign(0.0)


@keras.saving.register_keras_serializable("tf_dp2vae")
@dataclass(frozen=True)
class NotPrivate(WithoutNoise):
    """NO PRIVACY, for comparison only: everything is fitted to the records, without clip and without noise.

    As by default, the encoder sees principal components and refinement follows; both are exact here.
    """

    private: ClassVar[bool] = False
    is_whole_training: ClassVar[bool] = True

    def describe(self) -> str:
        return f"NOT PRIVATE: encoder and decoder trained {self.epochs} epochs on the records themselves, without noise"

    def run(self, model: DP2VAE, records: Records) -> None:
        batches = unprotected_batches(records, _BATCH, model.seed)
        variances, components = np.linalg.eigh(_within_classes(batches, model.latent_prior.num_classes))
        strongest = slice(-1, -1 - _COMPONENTS, -1)
        look_along(model.encoder, components[:, strongest], np.sqrt(np.maximum(variances[strongest], 0)))
        model.pretrain(batches, self.epochs * len(batches), self.learning_rate)
        every = unprotected_batches(records, _BATCH, model.seed, drop_remainder=False)
        assign_moments(model.latent_prior, _exact_moments(model, every))
        model.contrast.energy.assign(np.mean([mean_energy(unit_interval(images).numpy()) for images, _ in batches]))

    def feature_means(self, model: DP2VAE, records: Records, features: Features) -> Moments:
        classes = model.latent_prior.num_classes
        sums = np.zeros((classes, model.judge.num_features))
        for images, labels in unprotected_batches(records, _BATCH, model.seed, drop_remainder=False):
            sums += np.eye(classes)[labels.numpy()].T @ features(unit_interval(images).numpy())
        return Moments(None, sums, np.zeros((1, 0, 0)), 0.0, _HARDLY_ANY, 0.0)


def _within_classes(batches: tf.data.Dataset, classes: int) -> np.ndarray:
    """The images' covariance within classes over one pass, [pixels, pixels], without noise."""
    counts, sums, seconds = 0.0, 0.0, 0.0
    for images, labels in batches:
        flat = unit_interval(images).numpy().reshape(len(images), -1)
        member = np.eye(classes, dtype=np.float32)[labels.numpy()]
        counts, sums, seconds = counts + member.sum(0), sums + member.T @ flat, seconds + flat.T @ flat
    scaled = sums / np.sqrt(np.maximum(counts, 1))[:, None]
    return (seconds - scaled.T @ scaled) / np.sum(counts)


def _exact_moments(model: DP2VAE, batches: tf.data.Dataset) -> Moments:
    """Counts and latent moments of each class over one pass, without noise."""
    classes, latent = model.latent_prior.num_classes, model.latent_dim
    counts, sums, seconds = np.zeros(classes), np.zeros((classes, latent)), np.zeros((classes, latent, latent))
    encode = tf.function(model.encode, reduce_retracing=True, autograph=False)
    for images, labels in batches:
        mean, log_variance = encode(unit_interval(images), labels)
        member = np.eye(classes)[labels.numpy()]
        counts += member.sum(0)
        sums += member.T @ mean.numpy()
        seconds += np.einsum("nk,ni,nj->kij", member, mean, mean, optimize=True)
        seconds[:, range(latent), range(latent)] += member.T @ np.exp(bounded(log_variance).numpy())
    return Moments(counts, sums, seconds, _HARDLY_ANY, _HARDLY_ANY, _HARDLY_ANY)
