"""Private steps on records whose gradients lie along axes of their own: the worst case, and the easiest to read.

Record i's loss is linear in the i-th entry of each of four weight tables, with a slope far beyond the clip. So a sound step
moves those four entries by C/2 each if the record was drawn, and moves no others; noise comes on top. Sampling, mechanism,
engine and optimizer are the package's own, or, with `Parts`, one with a break planted in it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from tf_dp2vae.gradients import BookKeepingEngine, GradientEngine
from tf_dp2vae.ledger import Ledger
from tf_dp2vae.mechanisms import Mechanisms
from tf_dp2vae.optimizers import DPSGD
from tf_dp2vae.randomness import Entropy, SystemEntropy
from tf_dp2vae.records import Records
from tf_dp2vae.sampling import PoissonBatch, PoissonSource, no_draws

TABLES = 4
"""A clip on each table, instead of one over all, lets a record contribute √4 = 2 times C."""
_SLOPE = 5.0
_PLACES = (1, 256, 256**2)
"""What a channel's digit counts for in a record's number."""


class Parts(NamedTuple):
    """What a private step is made of."""

    mechanisms: Callable[[Ledger, Entropy], Mechanisms] = Mechanisms
    source: Callable[..., PoissonSource] = PoissonSource
    engine: Callable[[], GradientEngine] = BookKeepingEngine


SOUND = Parts()


def numbered(numbers: np.ndarray, pulling: np.ndarray, num_null: int = 0) -> Records:
    """Records that carry a number each.

    Args:
      numbers: [n], below 2²⁴; a record's gradient lies along the axes of its number.
      pulling: [n], booleans; the others' gradients are zero.
      num_null: null records besides.
    """
    images = np.asarray(numbers, "<u4").view(np.uint8).reshape(-1, 1, 1, 4)[..., :3]
    return Records(images, pulling.astype(np.int32), 2, num_null)


def numbers_of(images: np.ndarray) -> np.ndarray:
    """The numbers that images [n, 1, 1, 3] carry."""
    return images.reshape(-1, 3).astype(int) @ _PLACES


class _DiracLoss:
    """Slope · Σ over tables of the record's entry."""

    def __init__(self, size: int):
        number = keras.Input((1,), dtype="int32")
        tables = [layers.Embedding(size, 1, embeddings_initializer="zeros")(number) for _ in range(TABLES)]
        self.network = keras.Model(number, layers.Concatenate()(tables))

    private_draws = staticmethod(no_draws)

    def prepare(
        self, images: tf.Tensor, labels: tf.Tensor, draws: tuple[tf.Tensor, ...]
    ) -> tuple[tf.Tensor, tf.Tensor]:
        digits = tf.cast(tf.round(255 * tf.reshape(images, [-1, 3])), tf.int32)
        return tf.reduce_sum(digits * _PLACES, axis=1, keepdims=True), _SLOPE * tf.cast(labels, tf.float32)

    def losses(self, apply: Any, batch: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        number, slope = batch
        return slope * tf.reduce_sum(apply(self.network, number), axis=(1, 2))


class DiracStep:
    """One private step with C = 1, seen through the weights that it leaves."""

    def __init__(self, size: int, noise_multiplier: float, expected_batch_size: float, parts: Parts = SOUND):
        """Builds the step.

        Args:
          size: entries of each table.
          noise_multiplier: σ.
          expected_batch_size: q·N.
          parts: what it is made of.
        """
        self.mechanisms = parts.mechanisms(Ledger(), SystemEntropy())
        self._loss, self._engine = _DiracLoss(size), parts.engine()
        self._variables = self._loss.network.trainable_variables
        self._optimizer = DPSGD(learning_rate=1.0)
        self._optimizer.configure(1.0, noise_multiplier, expected_batch_size)
        self._optimizer.build(self._variables)
        self._expected = expected_batch_size

    def answer(self, batch: PoissonBatch) -> np.ndarray:
        """Σ clipped gradients + noise as far as the weights tell, [tables, size]: their change, times −q·N."""
        for variable in self._variables:
            variable.assign(tf.zeros(variable.shape))
        self._run(batch)
        return -self._expected * np.stack([variable.numpy()[:, 0] for variable in self._variables]).astype(np.float64)

    @tf.function(reduce_retracing=True, autograph=False)
    def _run(self, batch: PoissonBatch) -> None:
        def noised_sum(variables: Any, l2_norm_clip: float, noise_multiplier: float) -> list[tf.Tensor]:
            return self.mechanisms.gradient_sum(
                self._engine, self._loss, batch, variables, l2_norm_clip, noise_multiplier
            )[0]

        gradients = self._optimizer.private_gradients(noised_sum, self._variables)
        self._optimizer.apply(gradients, self._variables)
