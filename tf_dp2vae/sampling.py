"""Poisson batches of fixed shape.

Each unit (a record; with `units.bound_per_unit` a person with all kept records) is in a step's batch independently with
probability q; that, and not shuffling, is what the accountant's amplification by sampling is proved for. A batch of random
size is laid out in physical chunks of fixed shape with a 0/1 mask, so that one compiled program serves every step and
memory is a knob that cannot change privacy. A drawn null record has a place too, with a mask of 0: neighbours differ at one
unit's places and nowhere else, also in how sums are rounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tf_dp2vae.handover import aligned_zeros
from tf_dp2vae.randomness import Entropy, standard_normals
from tf_dp2vae.records import FULL_SCALE, NULL, Records

ExampleDraws = Callable[[np.random.Generator, int], tuple[np.ndarray, ...]]
"""(generator, n) → what n examples need drawn: arrays whose n rows are independent and alike. None are drawn for n = 0."""


class PoissonBatch(NamedTuple):
    """One logical batch. K chunks of P examples, of which the first `num_chunks` hold records.

    Attributes:
      images: [K, P, height, width, channels], uint8; zeros where the mask is 0.
      labels: [K, P], int32.
      mask: [K, P], uint8, 1 for a record.
      num_chunks: scalar int32.
      draws: each [K, P, …], what the loss needs drawn for each place, for this step alone; zeros behind the last.
      noise: [weights] float64, standard normals for this step's answer: one for each number of the trained variables.
    """

    images: tf.Tensor
    labels: tf.Tensor
    mask: tf.Tensor
    num_chunks: tf.Tensor
    draws: tuple[tf.Tensor, ...]
    noise: tf.Tensor


def unit_interval(images: tf.Tensor) -> tf.Tensor:
    """uint8 pixels as floats in [0, 1]; floats pass."""
    if images.dtype == tf.uint8:
        return tf.cast(images, tf.float32) / FULL_SCALE
    return tf.cast(images, tf.float32)


def no_draws(random: np.random.Generator, num: int) -> tuple[np.ndarray, ...]:
    """`ExampleDraws` of a loss without randomness."""
    return ()


def specs_of_one(draws: ExampleDraws) -> tuple[tf.TensorSpec, ...]:
    """Shape and type of what is drawn for one example."""
    return tuple(tf.TensorSpec(rows.shape[1:], rows.dtype) for rows in draws(np.random.default_rng(0), 0))


class PoissonSource:
    """Draws Poisson batches from records, what their losses need drawn, and the noise that hides them, without end.

    All are drawn ahead, on a thread of `dataset`, so that a step waits for none of them.
    """

    def __init__(
        self,
        records: Records,
        sampling_rate: float,
        physical_batch_size: int,
        entropy: Entropy,
        num_weights: int,
        example_draws: ExampleDraws = no_draws,
    ):
        """Prepares the layout of a batch; draws nothing yet.

        Args:
          records: what is drawn from.
          sampling_rate: q in (0, 1].
          physical_batch_size: P, examples that are processed at once. Trades memory for speed, never privacy.
          entropy: private randomness.
          num_weights: how many numbers a step's answer has.
          example_draws: what the loss needs drawn for each record of a batch.
        """
        self._records, self._entropy, self.num_weights = records, entropy, num_weights
        self._example_draws = example_draws
        self.sampling_rate = sampling_rate
        self.physical_batch_size = physical_batch_size
        most = records.unit.max_per_unit
        expected = sampling_rate * records.num_units * most
        # Room for eight deviations; a larger draw grows the layout (one recompilation) rather than being cut.
        self._chunks = math.ceil((expected + 8 * math.sqrt(expected * most) + 8 * most) / physical_batch_size)

    def draw(self) -> np.ndarray:
        """The places of one Poisson batch (`Records.places`): one coin a unit."""
        uniform = self._entropy.generator().random(self._records.num_units)
        return self._records.places(uniform < self.sampling_rate)

    def batch(self) -> PoissonBatch:
        """One logical batch, as NumPy arrays.

        Coins, draws and noise have a generator each, under a fresh key, so that none hangs on how much another took.

        Raises:
          ValueError: the loss's draws are not a row for each place.
        """
        chosen = self.draw()
        needed = -(-len(chosen) // self.physical_batch_size)
        self._chunks = max(self._chunks, needed)
        held = np.flatnonzero(chosen != NULL)
        with self._records.opened() as (all_images, all_labels):
            images = self._laid_out(all_images[chosen[held]], held)
            labels = self._laid_out(all_labels[chosen[held]].astype(np.int32), held)
        return PoissonBatch(
            images,
            labels,
            self._laid_out(np.ones(len(held), np.uint8), held),
            np.int32(needed),
            tuple(self._laid_out(rows, np.arange(len(chosen))) for rows in self._drawn_for(len(chosen))),
            standard_normals(self._entropy.generator(), self.num_weights),
        )

    def _drawn_for(self, num: int) -> tuple[np.ndarray, ...]:
        draws = self._example_draws(self._entropy.generator(), num)
        # Behind fewer rows would stand zeros: a record's share would hang on how many were drawn before it.
        if any(len(rows) != num for rows in draws):
            raise ValueError(f"The loss drew {[len(rows) for rows in draws]} rows for {num} places.")
        return draws

    def _laid_out(self, rows: np.ndarray, where: np.ndarray) -> np.ndarray:
        """[n, …] at the places `where`, [n] → [K, P, …], zeros elsewhere."""
        size, shape = self.physical_batch_size, rows.shape[1:]
        places = aligned_zeros((self._chunks * size, *shape), rows.dtype)
        places[where] = rows
        return places.reshape(self._chunks, size, *shape)

    def dataset(self) -> tf.data.Dataset:
        """An endless dataset of batches; the next is drawn while a step runs."""

        size = self.physical_batch_size
        signature = PoissonBatch(
            tf.TensorSpec([None, size, *self._records.image_shape], tf.uint8),
            tf.TensorSpec([None, size], tf.int32),
            tf.TensorSpec([None, size], tf.uint8),
            tf.TensorSpec([], tf.int32),
            tuple(tf.TensorSpec([None, size, *one.shape], one.dtype) for one in specs_of_one(self._example_draws)),
            tf.TensorSpec([self.num_weights], tf.float64),
        )

        def drawn(_: tf.Tensor) -> PoissonBatch:
            specs = tf.nest.flatten(signature)
            arrays = tf.numpy_function(lambda: tf.nest.flatten(self.batch()), [], [spec.dtype for spec in specs])
            shaped = [tf.ensure_shape(array, spec.shape) for array, spec in zip(arrays, specs)]
            return tf.nest.pack_sequence_as(signature, shaped)

        # One call a batch: `from_generator` would check each array once more in Python.
        batches = tf.data.Dataset.counter().map(drawn).prefetch(1)
        options = tf.data.Options()
        options.threading.private_threadpool_size = 1  # they are drawn one after the other
        return batches.with_options(options)


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
