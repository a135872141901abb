"""A judge of samples: a linear classifier of scattering features, which chooses among the decoder's candidates.

A decoder that learned under noise also makes images that belong to another class than the one asked for. The judge knows
each class's mean features from one noisy release, and their covariance from samples; a candidate is chosen with probability
in proportion to p(label | image), which is sampling-importance-resampling from decoder × judge.

Everything here is post-processing: no record is touched.

Reference: Fisher 1936 (the discriminant); Rubin 1987 (sampling-importance-resampling).
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_dp2vae.scattering import Scattering


@keras.saving.register_keras_serializable("tf_dp2vae")
class Judge(keras.Layer):
    """Normalised features of images, and what they say about the class. Undecided until `assign_discriminant`.

    Attributes:
      centre, scale: [maps], what features are normalised by.
      bound: R, scalar; normalised features are clipped to this norm, then divided by it.
      kernel, bias: [features, classes] and [classes], of the discriminant.
    """

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int, **kwargs: Any):
        """Args: (height, width, channels); number of classes, 1 for unlabelled images."""
        super().__init__(**{**kwargs, "trainable": False})
        self.image_shape, self.num_classes = tuple(image_shape), num_classes
        self._scattering = Scattering(self.image_shape)
        self.num_features = self._scattering.cells * self._scattering.maps

        def weight(name: str, shape: tuple[int, ...], initializer: str) -> keras.Variable:
            return self.add_weight(shape=shape, initializer=initializer, trainable=False, name=name)

        self.centre = weight("centre", (self._scattering.maps,), "zeros")
        self.scale = weight("scale", (self._scattering.maps,), "ones")
        self.bound = weight("bound", (), "ones")
        self.kernel = weight("kernel", (self.num_features, num_classes), "zeros")
        self.bias = weight("bias", (num_classes,), "zeros")
        self.built = True

    def normalise(self, images: np.ndarray) -> None:
        """Sets centre, scale and bound to what samples show, [n, height, width, channels] in [0, 1]."""
        found = self._scattering(tf.constant(images)).numpy()
        centre, scale = found.mean((0, 1)), np.maximum(found.std((0, 1)), _LEAST_SCALE)
        self.centre.assign(centre)
        self.scale.assign(scale)
        self.bound.assign(np.median(np.linalg.norm(((found - centre) / scale).reshape(len(found), -1), axis=1)))

    def features(self, images: tf.Tensor) -> tf.Tensor:
        """[n, height, width, channels] in [0, 1] → [n, features], of norm at most 1."""
        found = (self._scattering(images) - self.centre.value) / self.scale.value
        flat = tf.reshape(found, [-1, self.num_features]) / self.bound.value
        return flat * tf.minimum(1.0, tf.math.rsqrt(tf.reduce_sum(tf.square(flat), 1, keepdims=True) + _TINY))

    def assign_discriminant(
        self, means: np.ndarray, covariance: np.ndarray, frequencies: np.ndarray, noise_variance: float
    ) -> None:
        """Fisher's linear discriminant between classes of equal covariance.

        Args:
          means: of each class's features, [classes, features].
          covariance: within classes, [features, features].
          frequencies: [classes], probabilities.
          noise_variance: of each entry of the means; directions in which classes vary as little say nothing.
        """
        size = len(covariance)
        ridge = _RIDGE * np.trace(covariance) / size + _NOISE_RIDGE * noise_variance
        kernel = np.linalg.solve(covariance + ridge * np.eye(size), means.T)
        self.kernel.assign(kernel)
        self.bias.assign(np.log(np.maximum(frequencies, _TINY)) - 0.5 * np.einsum("kf,fk->k", means, kernel))

    def call(self, images: tf.Tensor) -> tf.Tensor:
        """ln p(label | image), [n, classes]."""
        return tf.nn.log_softmax(tf.matmul(self.features(images), self.kernel.value) + self.bias.value)

    def choose(self, candidates: tf.Tensor, labels: tf.Tensor, uniform: tf.Tensor) -> tf.Tensor:
        """One of each image's candidates, with probability in proportion to p(label | candidate).

        Args:
          candidates: [n, m, height, width, channels].
          labels: [n].
          uniform: [n, m], random numbers in (0, 1), which decide.

        Returns:
          [n, height, width, channels].
        """
        num = tf.shape(candidates)[0]
        verdicts = self(tf.reshape(candidates, [-1, *self.image_shape]))
        of_label = tf.gather(tf.reshape(verdicts, [num, -1, self.num_classes]), labels, axis=2, batch_dims=1)
        # The largest of ln p + Gumbel noise is a draw from p.
        chosen = tf.argmax(of_label - tf.math.log(-tf.math.log(uniform)), axis=1)
        return tf.gather(candidates, chosen, axis=1, batch_dims=1)

    def get_config(self) -> dict[str, Any]:
        """Keras's, with the sizes."""
        return {**super().get_config(), "image_shape": self.image_shape, "num_classes": self.num_classes}


_LEAST_SCALE = 1e-4
_TINY = 1e-12
_RIDGE, _NOISE_RIDGE = 0.25, 30.0
"""Added to the covariance's diagonal: this part of its mean, and so many times the noise's variance. Together they come near
the better ones of five ridges, 1e-5 to 3e-3, that were tried at ε = 0.2 and 1 on held-out training images."""
