"""Encoder matching: an attack on `unprotected`, the published mechanism.

Whoever knows the candidate data sets D and D′ and the pre-training seed computes both encoders, and asks whose latents the
released decoder fits better. D′ is D with one record nulled: it contributes zero to every sum, N is equal. The data of
both are the attacker's own.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tf_dp2vae.model import DP2VAE
from tf_dp2vae.sampling import unit_interval


class EncoderMatching:
    """The score of a released decoder: its loss through the encoder of D′ less its loss through that of D."""

    def __init__(
        self,
        model: DP2VAE,
        images: np.ndarray,
        labels: np.ndarray,
        encoder: list[np.ndarray],
        null_encoder: list[np.ndarray],
    ):
        """Remembers the latents that each encoder gives the images.

        Args:
          model: for its networks' shapes; weights are overwritten.
          images: any the attacker likes, [n, height, width, channels], uint8.
          labels: [n].
          encoder, null_encoder: weights of A(D) and A(D′).
        """
        self._model, self._images, self._labels = model, unit_interval(tf.constant(images)), tf.constant(labels)
        self._latents = []
        for weights in (encoder, null_encoder):
            model.encoder.set_weights(weights)
            self._latents.append(model.encode(self._images, self._labels)[0])

    def score(self, decoder: list[np.ndarray]) -> float:
        """In nats an image; positive where the decoder fits the latents of A(D) better."""
        self._model.decoder.set_weights(decoder)
        return float(self._excess_loss())

    @tf.function(autograph=False)
    def _excess_loss(self) -> tf.Tensor:
        losses = []
        for latent in self._latents:
            logits = self._model.decode(latent, self._labels)
            nats = tf.nn.sigmoid_cross_entropy_with_logits(labels=self._images, logits=logits)
            losses.append(tf.reduce_mean(tf.reduce_sum(nats, axis=(1, 2, 3))))
        return losses[1] - losses[0]
