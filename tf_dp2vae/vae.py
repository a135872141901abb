"""A conditional variational autoencoder as a Keras model: encode, decode, evidence lower bound, evaluation.

`model.DP2VAE` is this and its training. Every example's loss depends on that example alone, which is what `mixing` makes
sure of; `private_draws`, `prepare` and `losses` are what the gradient mechanism asks for.

Reference: Kingma and Welling 2014, "Auto-Encoding Variational Bayes"; Sohn, Lee and Yan 2015, "Learning Structured Output
Representation using Deep Conditional Generative Models".
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_dp2vae import objectives
from tf_dp2vae.augmentation import Shifts
from tf_dp2vae.gradients import Apply, plain_apply
from tf_dp2vae.randomness import standard_normals
from tf_dp2vae.records import Records
from tf_dp2vae.refusals import as_records, check_networks, holds_images, refuse_weights
from tf_dp2vae.sampling import in_order, unit_interval
from tf_dp2vae.validation import check, check_seed, check_whole

_MEASURED_AT_ONCE = 256


class VAE(keras.Model):
    """Encoder and decoder, with or without labels.

    Attributes:
      encoder, decoder: functional Keras models.
      num_classes: size of the label set, read off the decoder's second input; 0 for a model without labels.
      latent_dim: dimensions of z.
      image_shape: (height, width, channels).
      draws: K latent draws of each example, over which its loss is averaged.
      augmentation: moves each example, another way for each of its draws; None for none.
      physical_batch_size: examples processed at once, where something smaller than the default is wanted.
    """

    physical_batch_size: int | None = None

    def __init__(
        self,
        encoder: keras.Model,
        decoder: keras.Model,
        draws: int,
        augmentation: Shifts | None,
        seed: int,
        **kwargs: Any,
    ):
        """Args: the networks; K; how copies are moved; seed of the latent draws in ordinary training and evaluation.

        Raises:
          InvalidInputError: networks whose shapes do not fit, shifts that move an image out of itself, or an unusable seed.
        """
        super().__init__(**kwargs)
        self.encoder, self.decoder = encoder, decoder
        self.num_classes = check_networks(encoder, decoder)
        check_whole(draws=draws)
        check_seed(seed)
        if augmentation is not None:
            augmentation.check_fits(tuple(encoder.inputs[0].shape[1:]))
        self.latent_dim = int(decoder.inputs[0].shape[-1])
        self.image_shape = tuple(encoder.inputs[0].shape[1:])
        self.draws, self.augmentation = draws, augmentation
        self._noise = keras.random.SeedGenerator(seed)
        # Of its own: how many batches records were evaluated in must not show in what is trained afterwards.
        self._noise_of_metrics = keras.random.SeedGenerator(seed)
        self._loss = keras.metrics.Mean(name="loss")
        self._reconstruction = keras.metrics.Mean(name="reconstruction")
        self._kl = keras.metrics.Mean(name="kl")

    def encode(self, images: tf.Tensor, labels: tf.Tensor | None = None, apply: Apply = plain_apply) -> list[tf.Tensor]:
        """Mean and log-variance of q(z|x, y), each [examples, latent].

        Args:
          images: [examples, height, width, channels] in [0, 1].
          labels: [examples], whole numbers; needed by a conditional encoder.
          apply: how the network is called; engines look in there.
        """
        return apply(self.encoder, self._with_label(images, labels, len(self.encoder.inputs)))

    def decode(self, latent: tf.Tensor, labels: tf.Tensor | None = None, apply: Apply = plain_apply) -> tf.Tensor:
        """Logits of p(x|z, y), [examples, height, width, channels], for latents [examples, latent] and labels [examples]."""
        return apply(self.decoder, self._with_label(latent, labels, len(self.decoder.inputs)))

    def call(self, inputs: Any, training: bool = False) -> tf.Tensor:
        """Reconstructions in [0, 1] through the latent mean, for images or (images, labels)."""
        images, labels = inputs if isinstance(inputs, (tuple, list)) else (inputs, None)
        mean, _ = self.encode(unit_interval(tf.convert_to_tensor(images)), labels)
        return tf.sigmoid(self.decode(mean, labels))

    def _with_label(self, first: tf.Tensor, labels: tf.Tensor | None, num_inputs: int) -> Any:
        if num_inputs == 1:
            return first
        check(labels is not None, "this model is conditional on the label: pass labels too.")
        return [first, tf.one_hot(tf.cast(labels, tf.int32), self.num_classes)]

    def elbo(self, apply: Apply, images: tf.Tensor, labels: tf.Tensor, standard_normal: tf.Tensor) -> objectives.Elbo:
        """The parts of the negative ELBO, each [examples]; standard_normal is [examples, K, latent]."""
        mean, log_variance = self.encode(images, labels, apply)
        latent = objectives.draw_latent(mean, log_variance, standard_normal)
        draws = standard_normal.shape[1]
        logits = self.decode(latent, labels if draws == 1 else tf.repeat(labels, draws), apply)
        return objectives.negative_elbo(images, logits, mean, log_variance)

    def private_draws(self, random: np.random.Generator, num: int) -> tuple[np.ndarray, ...]:
        """Latent noise [num, K, latent], float32; where augmented, how each copy is moved, too."""
        noise = standard_normals(random, num, self.draws, self.latent_dim).astype(np.float32)
        return (noise,) if self.augmentation is None else (noise, self.augmentation.offsets(random, num, self.draws))

    def prepare(
        self, images: tf.Tensor, labels: tf.Tensor, draws: tuple[tf.Tensor, ...]
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Images [P, …], or their copies [P, K, …] where augmented, labels [P] and the latent noise [P, K, latent]."""
        noise, *offsets = draws
        if self.augmentation is not None:
            images = self.augmentation.copies(images, *offsets)
        return images, labels, noise

    def losses(self, apply: Apply, batch: tuple[tf.Tensor, tf.Tensor, tf.Tensor]) -> tf.Tensor:
        """Negative ELBO of each example, [P], in nats; where augmented, the mean over its copies."""
        if self.augmentation is None:
            reconstruction, kl = self.elbo(apply, *batch)
            return reconstruction + kl
        images, labels, noise = batch
        copies = tf.reshape(images, [-1, *images.shape[2:]])
        labels, noise = tf.repeat(labels, self.draws), tf.reshape(noise, [-1, 1, self.latent_dim])
        reconstruction, kl = self.elbo(apply, copies, labels, noise)
        return tf.reduce_mean(tf.reshape(reconstruction + kl, [-1, self.draws]), axis=1)

    def evaluate(  # type: ignore[override]
        self, x: Any = None, y: Any = None, batch_size: int | None = None, **arguments: Any
    ) -> Any:
        """The mean negative ELBO and its parts, private numbers all; arguments as in Keras.

        Args:
          x: arrays or `Records` as for `fit`, or a dataset of (images [n, height, width, channels], labels [n]).
          y: [N] labels of arrays, for a model with labels.
          batch_size: images at once; no effect on what comes out but for the latent draws.

        Raises:
          InvalidInputError: what `fit` refuses of x and y; sample weights.
        """
        if holds_images(x):
            records = as_records(x, y, self.num_classes, self.image_shape)
            refuse_weights(arguments.pop("sample_weight", None))
            return super().evaluate(self.in_order(records, batch_size), **arguments)
        return super().evaluate(x, y, batch_size, **arguments)

    def predict(self, x: Any, batch_size: int | None = None, **arguments: Any) -> Any:
        """Reconstructions [N, height, width, channels] in [0, 1] through the latent mean; arguments as in Keras.

        Args:
          x: images as for `fit`, or (images, labels) for a model with labels.
          batch_size: images at once.

        Raises:
          InvalidInputError: what `fit` refuses of images and labels.
        """
        images, labels = x if isinstance(x, (tuple, list)) and len(x) == 2 else (x, None)
        if holds_images(images):
            records = as_records(images, labels, self.num_classes, self.image_shape)
            pairs = self.in_order(records, batch_size).map(lambda *pair: (pair,))
            return super().predict(pairs, **arguments)
        return super().predict(x, batch_size, **arguments)

    def in_order(self, records: Records, batch_size: int | None = None) -> tf.data.Dataset:
        """(images, labels) batches of all records, for metrics."""
        return in_order(records, batch_size or self.physical_batch_size or _MEASURED_AT_ONCE)

    def test_step(self, data: Any) -> dict[str, Any]:
        """Mean ELBO of (images, labels) or images. A private number when the images are records."""
        images, labels, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        refuse_weights(sample_weight)
        if labels is None and not self.num_classes:
            labels = tf.zeros([tf.shape(images)[0]], tf.int32)
        check(labels is not None, "this model is conditional on the label: pass labels too.")
        self.mean_elbo(unit_interval(images), labels, self._noise_of_metrics)
        return {metric.name: metric.result() for metric in (self._loss, self._reconstruction, self._kl)}

    def mean_elbo(self, images: tf.Tensor, labels: tf.Tensor, draws: keras.random.SeedGenerator) -> tf.Tensor:
        """Mean negative ELBO of a batch, images in [0, 1], with one draw an example; the trackers follow."""
        noise = keras.random.normal([tf.shape(images)[0], 1, self.latent_dim], dtype="float32", seed=draws)
        reconstruction, kl = self.elbo(plain_apply, images, labels, tf.ensure_shape(noise, [None, 1, self.latent_dim]))
        loss = tf.reduce_mean(reconstruction + kl)
        self._loss.update_state(loss)
        self._reconstruction.update_state(reconstruction)
        self._kl.update_state(kl)
        return loss
