"""The thing that is released: decoder, latent prior, contrast and judge, as a SavedModel that samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tf_dp2vae.contrast import Contrast
from tf_dp2vae.judge import Judge
from tf_dp2vae.priors import LatentPrior

_LATENT, _LABEL, _RECORD = 1, 2, 3
_BLOCK = 64
"""Images judged at once; candidates and their features are kept for no more of them than that."""


class Sampler(tf.Module):
    """Owns the weights of decoder, prior, contrast and judge and nothing else: no encoder, no optimizer, no records.

    Signatures: `sample(num, label, seed)` for a conditional model, `sample(num, seed)` otherwise → images in [0, 1],
    float32 [num, height, width, channels]; `sample_labels(num, seed)` → labels, int32 [num], at the frequencies of the
    training data as far as the guarantee lets them be known; `sample_records(num, seed)` → images and labels, those of
    `sample_labels` at the seed (0 without labels). All arguments are int32 scalars; equal seeds give equal samples, and
    independent ones of different labels. `num_classes()` → int32, 0 without labels; `image_shape()` → int32 [3], height,
    width and channels.
    """

    def __init__(
        self,
        decoder: keras.Model,
        prior: LatentPrior,
        contrast: Contrast,
        num_classes: int,
        judge: Judge | None = None,
        candidates: int = 1,
    ):
        """Takes over the networks as they are now.

        Args:
          decoder, prior, contrast: where images come from.
          num_classes: size of the label set, 0 without labels.
          judge: chooses among candidates of the label asked for; None, or no labels: nobody chooses.
          candidates: how many it is shown for each image; with 1 it is left out.
        """
        super().__init__(name="sampler")
        self._decoder, self._prior, self._contrast, self._num_classes = decoder, prior, contrast, num_classes
        self._judge, self._candidates = (judge, candidates) if num_classes and candidates > 1 else (None, 1)

        def of_scalars(function: Callable[..., Any], *names: str) -> Callable[..., Any]:
            signature = [tf.TensorSpec([], tf.int32, name) for name in names]
            return tf.function(function, input_signature=signature, autograph=False)

        if num_classes:
            self.sample = of_scalars(self._sample_class, "num", "label", "seed")
        else:
            self.sample = of_scalars(self._sample, "num", "seed")
        self.sample_labels = of_scalars(self._sample_labels, "num", "seed")
        self.sample_records = of_scalars(self._sample_records, "num", "seed")
        self.num_classes = of_scalars(lambda: tf.constant(num_classes))
        self.image_shape = of_scalars(lambda: tf.constant(decoder.output_shape[1:]))

    def _sample_class(self, num: tf.Tensor, label: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        known = tf.debugging.Assert(
            (label >= 0) & (label < self._num_classes), [f"label must lie in 0 to {self._num_classes - 1}, not", label]
        )
        with tf.control_dependencies([known]):
            labels = tf.fill([_counted(num)], label)
        # At one seed every class would get the same latents, but for their means and scales.
        return self._images(labels, tf.random.fold_in(tf.stack([seed, _LATENT]), label))

    def _sample(self, num: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        return self._images(tf.zeros([_counted(num)], tf.int32), tf.stack([seed, _LATENT]))

    def _sample_records(self, num: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        labels = self._sample_labels(num, seed)
        return self._images(labels, tf.stack([seed, _RECORD])), labels

    def _images(self, labels: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
        """An image of each label, chosen by the judge where there is one."""
        if self._judge is None:
            return self._unjudged(labels, key)
        judge, num, shape = self._judge, tf.size(labels), self._decoder.output_shape[1:]

        def block(entry: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
            index, labels = entry
            return self._chosen(judge, labels, tf.random.fold_in(key, index))

        padded = tf.reshape(tf.pad(labels, [[0, -num % _BLOCK]]), [-1, _BLOCK])
        blocks = tf.map_fn(
            block,
            (tf.range(tf.shape(padded)[0]), padded),
            fn_output_signature=tf.TensorSpec([_BLOCK, *shape]),
            parallel_iterations=1,
        )
        return tf.reshape(blocks, [-1, *shape])[:num]

    def _chosen(self, judge: Judge, labels: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
        """A block of images of the labels, each chosen by the judge."""
        for_latents, for_choice = tf.unstack(tf.random.split(key, 2))
        images = self._unjudged(tf.repeat(labels, self._candidates), for_latents)
        candidates = tf.reshape(images, [_BLOCK, self._candidates, *images.shape[1:]])
        uniform = tf.random.stateless_uniform([_BLOCK, self._candidates], for_choice, minval=1e-7)
        return judge.choose(candidates, labels, uniform)

    def _unjudged(self, labels: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
        latent = self._prior.sample(labels, key)
        inputs = [latent, tf.one_hot(labels, self._num_classes)] if self._num_classes else latent
        return self._contrast(self._decoder(inputs, training=False))

    def _sample_labels(self, num: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        return self._prior.sample_labels(_counted(num), tf.stack([seed, _LABEL]))


def _counted(num: tf.Tensor) -> tf.Tensor:
    """How many, refused below 0."""
    with tf.control_dependencies([tf.debugging.Assert(num >= 0, ["num must be at least 0, not", num])]):
        return tf.identity(num)
