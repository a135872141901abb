"""Poisson batches of fixed shape.

Each unit (a record; with `units.bound_per_unit` a person with all kept records) is in a step's batch independently with
probability q; that, and not shuffling, is what the accountant's amplification by sampling is proved for. A batch of random
size is laid out in physical chunks of fixed shape with a 0/1 mask, so that one compiled program serves every step and
memory is a knob that cannot change privacy.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tf_dp2vae.randomness import Entropy, standard_normals
from tf_dp2vae.records import FULL_SCALE, Records


class PoissonBatch(NamedTuple):
    """One logical batch. K chunks of P examples, of which the first `num_chunks` hold records.

    Attributes:
      images: [K, P, height, width, channels], uint8; zeros where the mask is 0.
      labels: [K, P], int32.
      mask: [K, P], uint8, 1 for a record.
      num_chunks: scalar int32.
      key: [2] int64, fresh private randomness for this step's latent draws.
      noise: [weights] float64, standard normals for this step's answer: one for each number of the trained variables.
    """

    images: tf.Tensor
    labels: tf.Tensor
    mask: tf.Tensor
    num_chunks: tf.Tensor
    key: tf.Tensor
    noise: tf.Tensor


def unit_interval(images: tf.Tensor) -> tf.Tensor:
    """uint8 pixels as floats in [0, 1]; floats pass."""
    if images.dtype == tf.uint8:
        return tf.cast(images, tf.float32) / FULL_SCALE
    return tf.cast(images, tf.float32)


class PoissonSource:
    """Draws Poisson batches from records, and the noise that hides them, without end.

    Both are drawn ahead, on a thread of `dataset`, so that a step waits for neither.
    """

    def __init__(
        self, records: Records, sampling_rate: float, physical_batch_size: int, entropy: Entropy, num_weights: int
    ):
        """Prepares the layout of a batch; draws nothing yet.

        Args:
          records: what is drawn from.
          sampling_rate: q in (0, 1].
          physical_batch_size: P, examples that are processed at once. Trades memory for speed, never privacy.
          entropy: private randomness.
          num_weights: how many numbers a step's answer has.
        """
        self._records, self._entropy, self.num_weights = records, entropy, num_weights
        self.sampling_rate = sampling_rate
        self.physical_batch_size = physical_batch_size
        most, expected = records.unit.max_per_unit, sampling_rate * records.most_held
        # Room for eight deviations; a larger draw grows the layout (one recompilation) rather than being cut.
        self._chunks = math.ceil((expected + 8 * math.sqrt(expected * most) + 8 * most) / physical_batch_size)

    def draw(self) -> np.ndarray:
        """The indices of one Poisson batch, ascending: one coin a unit. A null record, drawn or not, contributes nothing."""
        uniform = self._entropy.generator().random(self._records.num_units)
        return self._records.members(uniform < self.sampling_rate)

    def batch(self) -> PoissonBatch:
        """One logical batch, as NumPy arrays."""
        chosen = self.draw()
        size = self.physical_batch_size
        needed = -(-len(chosen) // size)
        self._chunks = max(self._chunks, needed)
        room = self._chunks * size
        images = np.zeros((room, *self._records.image_shape), np.uint8)
        labels = np.zeros(room, np.int32)
        mask = np.zeros(room, np.uint8)
        with self._records.opened() as (all_images, all_labels):
            images[: len(chosen)] = all_images[chosen]
            labels[: len(chosen)] = all_labels[chosen]
        mask[: len(chosen)] = 1
        layout = (self._chunks, size)
        return PoissonBatch(
            images.reshape(*layout, *self._records.image_shape),
            labels.reshape(layout),
            mask.reshape(layout),
            np.int32(needed),
            self._entropy.key(),
            standard_normals(self._entropy.generator(), self.num_weights),
        )

    def dataset(self) -> tf.data.Dataset:
        """An endless dataset of batches; the next is drawn while a step runs."""

        size = self.physical_batch_size
        signature = PoissonBatch(
            tf.TensorSpec([None, size, *self._records.image_shape], tf.uint8),
            tf.TensorSpec([None, size], tf.int32),
            tf.TensorSpec([None, size], tf.uint8),
            tf.TensorSpec([], tf.int32),
            tf.TensorSpec([2], tf.int64),
            tf.TensorSpec([self.num_weights], tf.float64),
        )

        def drawn(_: tf.Tensor) -> PoissonBatch:
            arrays = tf.numpy_function(self.batch, [], [spec.dtype for spec in signature])
            return PoissonBatch(*(tf.ensure_shape(array, spec.shape) for array, spec in zip(arrays, signature)))

        # One call a batch, one after the other: `from_generator` would check each array once more in Python.
        return tf.data.Dataset.counter().map(drawn).prefetch(1)


def in_order(records: Records, batch_size: int) -> tf.data.Dataset:
    """(images, labels) batches of all records, for metrics of the private side."""
    with records.opened() as (images, labels):
        return tf.data.Dataset.from_tensor_slices((images, labels)).batch(batch_size)


def unprotected_batches(records: Records, batch_size: int, seed: int, drop_remainder: bool = True) -> tf.data.Dataset:
    """Shuffled (images, labels) batches *outside* every mechanism. Whatever learns from them is not private."""
    with records.opened() as (images, labels):
        dataset = tf.data.Dataset.from_tensor_slices((images, labels))
    shuffled = dataset.shuffle(len(images), seed=seed, reshuffle_each_iteration=True)
    return shuffled.batch(min(batch_size, len(images)), drop_remainder=drop_remainder)
