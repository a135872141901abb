"""The thing that is released: a decoder and a latent prior, as a SavedModel that samples."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tf_dp2vae.contrast import Contrast
from tf_dp2vae.priors import LatentPrior

_LATENT, _LABEL = 1, 2


class Sampler(tf.Module):
    """Owns the weights of decoder, prior and contrast and nothing else: no encoder, no optimizer state, no records.

    Signatures: `sample(num, label, seed)` for a conditional model, `sample(num, seed)` otherwise → images in [0, 1],
    float32 [num, height, width, channels]; `sample_labels(num, seed)` → labels at the frequencies of the training
    data as far as the guarantee lets them be known. All arguments are int32 scalars; equal seeds give equal samples.
    """

    def __init__(self, decoder: keras.Model, prior: LatentPrior, contrast: Contrast, num_classes: int):
        """Takes over the networks as they are now."""
        super().__init__(name="sampler")
        self._decoder, self._prior, self._contrast, self._num_classes = decoder, prior, contrast, num_classes
        scalar = tf.TensorSpec([], tf.int32)

        def named(*names: str) -> list[tf.TensorSpec]:
            return [tf.TensorSpec(scalar.shape, scalar.dtype, name) for name in names]

        if num_classes:
            self.sample = tf.function(self._sample_class, input_signature=named("num", "label", "seed"))
        else:
            self.sample = tf.function(self._sample, input_signature=named("num", "seed"))
        self.sample_labels = tf.function(self._sample_labels, input_signature=named("num", "seed"))

    def _sample_class(self, num: tf.Tensor, label: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        known = tf.debugging.Assert(
            (label >= 0) & (label < self._num_classes), [f"label must lie in 0 to {self._num_classes - 1}, not", label]
        )
        with tf.control_dependencies([known]):
            labels = tf.fill([num], label)
        latent = self._prior.sample(labels, tf.stack([seed, _LATENT]))
        return self._pixels([latent, tf.one_hot(labels, self._num_classes)])

    def _sample(self, num: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        latent = self._prior.sample(tf.zeros([num], tf.int32), tf.stack([seed, _LATENT]))
        return self._pixels(latent)

    def _pixels(self, inputs: Any) -> tf.Tensor:
        return self._contrast(self._decoder(inputs, training=False))

    def _sample_labels(self, num: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        return self._prior.sample_labels(num, tf.stack([seed, _LABEL]))
