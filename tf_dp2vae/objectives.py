"""Per-example losses of a variational autoencoder."""

from __future__ import annotations

import math
from typing import NamedTuple

import tensorflow as tf

LOG_VARIANCE_BOUND = 12.0


class Elbo(NamedTuple):
    """The two parts of the negative evidence lower bound, each [examples], in nats."""

    reconstruction: tf.Tensor
    kl: tf.Tensor


def bounded(log_variance: tf.Tensor) -> tf.Tensor:
    """Log-variances kept where their exponential is a number that float32 can square."""
    return tf.clip_by_value(log_variance, -LOG_VARIANCE_BOUND, LOG_VARIANCE_BOUND)


def draw_latent(mean: tf.Tensor, log_variance: tf.Tensor, standard_normal: tf.Tensor) -> tf.Tensor:
    """z = μ + σ·ε, K draws of each example one after the other.

    Args:
      mean, log_variance: [examples, latent].
      standard_normal: ε, [examples, K, latent].

    Returns:
      [examples·K, latent].

    Reference: Kingma and Welling 2014, section 2.4.
    """
    spread = tf.exp(0.5 * bounded(log_variance))
    latent = tf.expand_dims(mean, 1) + tf.expand_dims(spread, 1) * standard_normal
    return tf.reshape(latent, [-1, mean.shape[-1]])


def negative_elbo(images: tf.Tensor, logits: tf.Tensor, mean: tf.Tensor, log_variance: tf.Tensor) -> Elbo:
    """−log p(x|z) under a Bernoulli decoder, averaged over K draws, and KL(q(z|x) ‖ N(0, I)).

    Args:
      images: x in [0, 1], [examples, height, width, channels].
      logits: the decoder's, [examples·K, height, width, channels].
      mean, log_variance: the encoder's, [examples, latent].

    Reference: Kingma and Welling 2014, equation 10 and appendix B.
    """
    examples = images.shape[0] if images.shape[0] is not None else tf.shape(images)[0]
    logits = tf.reshape(logits, [examples, -1, *images.shape[1:]])
    targets = tf.broadcast_to(tf.expand_dims(images, 1), tf.shape(logits))
    nats = tf.nn.sigmoid_cross_entropy_with_logits(labels=targets, logits=logits)
    reconstruction = tf.reduce_mean(tf.reduce_sum(nats, axis=(2, 3, 4)), axis=1)
    log_variance = bounded(log_variance)
    kl = 0.5 * tf.reduce_sum(tf.exp(log_variance) + tf.square(mean) - 1.0 - log_variance, axis=1)
    return Elbo(reconstruction, kl)


def recognition_loss(latent: tf.Tensor, mean: tf.Tensor, log_variance: tf.Tensor) -> tf.Tensor:
    """−log q(z|x), [examples], in nats: what sleep teaches the encoder about samples whose z is known.

    Reference: Hinton, Dayan, Frey and Neal 1995, "The wake-sleep algorithm for unsupervised neural networks".
    """
    log_variance = bounded(log_variance)
    squared = tf.square(latent - mean) * tf.exp(-log_variance)
    return 0.5 * tf.reduce_sum(squared + log_variance + math.log(2 * math.pi), axis=1)
