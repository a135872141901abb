"""The one door: every function that turns records into a noised answer.

A mechanism (i) appends its event to the ledger, (ii) reads records, (iii) bounds what any one of them contributes,
(iv) adds Gaussian noise (`randomness.standard_normals`) keyed from the operating system. Whatever is computed from answers
alone is post-processing and costs nothing. Neighbours differ by one record replaced by a null record, which contributes
zero to every sum; so the L2 sensitivity of a sum is the bound on one contribution, C; where the unit is a person of at most
k records, it is k·C (`units`), and "record" below reads "each record of a person".

σ, the noise multiplier of an event, is the noise's standard deviation divided by that sensitivity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf

from tf_dp2vae._tfp import GaussianSumQuery
from tf_dp2vae.accounting import Event
from tf_dp2vae.factors import MOST_AT_ONCE, ROUNDING
from tf_dp2vae.gradients import Apply, GradientEngine
from tf_dp2vae.ledger import Ledger
from tf_dp2vae.moments import Moments, clip_rows, clipped_sums, noised_moments
from tf_dp2vae.randomness import Entropy, on_grid
from tf_dp2vae.records import FULL_SCALE, Records
from tf_dp2vae.sampling import PoissonBatch, specs_of_one, unit_interval

_CHUNK = 2048

Encode = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""(images [n, h, w, c] in [0, 1], labels [n]) → (means [n, d], variances [n, d]) of each record's latent."""
Features = Callable[[np.ndarray], np.ndarray]
"""Images [n, h, w, c] in [0, 1] → [n, d], of each image alone."""
Contribution = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]
"""(images, labels) → what each record adds: to its class's sum [n, d]; p [n, e] and s² [n, e] of p pᵀ + diag(s²)."""


class ExampleLoss(Protocol):
    """What is minimised, one number an example."""

    def private_draws(self, random: np.random.Generator, num: int) -> tuple[np.ndarray, ...]:
        """What it needs drawn for `num` examples, an `ExampleDraws`; it may draw nothing else in a private step."""
        ...

    def prepare(self, images: tf.Tensor, labels: tf.Tensor, draws: tuple[tf.Tensor, ...]) -> Any:
        """Nested tensors with examples on axis 0, from images [P, …] in [0, 1], labels [P] and draws, each [P, …]."""
        ...

    def losses(self, apply: Apply, batch: Any) -> tf.Tensor:
        """[P] losses; example i's may depend on example i alone."""
        ...


class DrawnGaussianSumQuery(GaussianSumQuery):
    """tensorflow-privacy's query, its noise handed in instead of drawn from TensorFlow's global generator."""

    def __init__(self, l2_norm_clip: float, noise_multiplier: float, noise: tf.Tensor):
        super().__init__(l2_norm_clip, l2_norm_clip * noise_multiplier)
        self._noise = noise

    def get_noised_result(self, sample_state: tf.Tensor, global_state: Any) -> Any:
        """The sum, [weights] in float64, plus noise of the query's deviation, on the grid; in float32, which holds it."""
        noised = sample_state + self._noise * tf.cast(self._stddev, tf.float64)
        return tf.cast(on_grid(noised, self._stddev), tf.float32), global_state, None


class Mechanisms:
    """The mechanisms of one run, on one ledger."""

    def __init__(self, ledger: Ledger, entropy: Entropy):
        self.ledger, self.entropy = ledger, entropy

    def charge(self, event: Event) -> None:
        """Puts the event on the ledger. Gradient steps are compiled, so whoever runs one charges it just before."""
        self.ledger.charge(event)

    def gradient_sum(
        self,
        engine: GradientEngine,
        loss: ExampleLoss,
        batch: PoissonBatch,
        variables: Sequence[keras.Variable],
        l2_norm_clip: float,
        noise_multiplier: float,
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        """Σ over the Poisson batch of min(1, C/‖g_i‖) g_i, plus N(0, (1.005 σC)² I). Compiles; charge before running.

        Sensitivity: a record is in the batch or not (Poisson, probability q), and in it contributes one vector over all
        `variables` together, clipped to norm C once. Its draws of z, and its augmented copies, are averaged inside g_i.
        Padding and non-finite examples contribute zero. So the sum moves by at most C when a record is nulled, whatever
        the weights, provided that the weights are functions of earlier answers only. That is in exact arithmetic; in
        float32 it moves by at most C (1 + `ROUNDING`), since a nulled record keeps its place (`sampling`) and so touches
        the rounding of one chunk alone. The noise is that much larger.
        Event: Poisson-sampled Gaussian(q, σ), once for each step.

        Args:
          engine: computes the clipped sum of a physical chunk.
          loss: per-example losses.
          batch: one logical Poisson batch, with the draws and the noise that its source made for this step alone.
          variables: all trained variables.
          l2_norm_clip: C.
          noise_multiplier: noise deviation divided by C: σ, or k·σ where the unit is a person of at most k records.

        Returns:
          The noised sums, one tensor a variable, and the un-noised mean loss of the batch: *private*, for the person who
          trains, never for the release.

        Raises:
          ValueError: a variable is named twice, chunks are too large, the batch's noise is not one number for each weight,
            or its draws are not the loss's.

        Reference: Abadi et al. 2016, algorithm 1.
        """

        if len({id(variable) for variable in variables}) < len(variables):
            raise ValueError("A variable is named twice: its gradient would be clipped once and answered twice.")
        sizes = [math.prod(variable.shape) for variable in variables]
        if batch.noise.shape != [sum(sizes)]:
            raise ValueError(f"The batch brings noise for {batch.noise.shape} weights, trained are {sum(sizes)}.")
        size = int(batch.mask.shape[1])  # type: ignore[arg-type]
        if size > MOST_AT_ONCE:
            raise ValueError(f"Chunks of {size} examples: sums of more than {MOST_AT_ONCE} round too much away.")
        _check_draws(loss, batch)

        def add_chunk(index: tf.Tensor, total: tf.Tensor, loss_sum: tf.Tensor) -> tuple:
            draws = tuple(rows[index] for rows in batch.draws)
            examples = loss.prepare(unit_interval(batch.images[index]), batch.labels[index], draws)
            chunk, chunk_loss = engine.clipped_sum(loss.losses, examples, batch.mask[index], variables, l2_norm_clip)
            flat = tf.concat([tf.reshape(part, [-1]) for part in chunk], 0)
            return index + 1, total + tf.cast(flat, tf.float64), loss_sum + chunk_loss

        # One chunk at a time: TensorFlow would otherwise run up to ten of them at once, and hold all their memory.
        _, total, loss_sum = tf.while_loop(
            lambda index, *_: index < batch.num_chunks,
            add_chunk,
            [tf.constant(0), tf.zeros([sum(sizes)], tf.float64), tf.constant(0.0)],
            parallel_iterations=1,
        )
        query = DrawnGaussianSumQuery(l2_norm_clip * (1 + ROUNDING), noise_multiplier, batch.noise)
        noised, _, _ = query.get_noised_result(total, query.initial_global_state())
        parts = [tf.reshape(part, variable.shape) for part, variable in zip(tf.split(noised, sizes), variables)]
        drawn = tf.reduce_sum(tf.cast(batch.mask, tf.float32))
        return parts, loss_sum / tf.maximum(drawn, 1.0)

    def class_statistics(
        self, records: Records, event: Event, basis: np.ndarray, bound: float, weights: tuple[float, float, float]
    ) -> Moments:
        """Per class the count and the sum of clipped images; over all classes the second moment of their projections.

        Sensitivity: one record contributes (a, b·x/R, c·vech(p pᵀ)/R²) with the image x clipped to ‖x‖ ≤ R and p = Qᵀx
        for an orthonormal Q, so ‖p‖ ≤ R. vech carries √2 on the off-diagonal, so its norm is the Frobenius norm
        ‖p pᵀ‖ = ‖p‖² ≤ R². The blocks are disjoint: the whole contribution has norm at most √(a² + b² + c²).
        Event: Gaussian(σ), once.

        Args:
          records: all of them take part.
          event: what is charged; carries σ.
          basis: Q, [pixels, d], orthonormal columns; a constant, not from records.
          bound: R, on the norm of an image with pixels in [0, 1].
          weights: (a, b, c), how accuracy is spread; only their ratios matter.
        """
        _check_orthonormal(basis)

        def contribution(images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            flat = clip_rows(images.reshape(len(images), -1), bound)
            projected = flat @ basis
            return flat, projected, np.zeros_like(projected)

        return self.release_moments(records, event, contribution, bound, weights, shared_second=True)

    def latent_moments(
        self,
        records: Records,
        event: Event,
        encode: Encode,
        bound: float,
        weights: tuple[float, float, float],
        shared_second: bool,
    ) -> Moments:
        """Per class the count, the sum of clipped latent means m, and the sum of (m mᵀ + diag(s²)) clipped as a whole.

        Sensitivity: one record contributes (a, b·m/R, c·vech(M)/R²), with ‖m‖ ≤ R by clipping and M = m mᵀ + diag(s²)
        scaled down to Frobenius norm R² where it exceeds that. As for `class_statistics`, at most √(a² + b² + c²). The
        encoder must be a function of earlier answers (or public): then a record moves only its own contribution.
        Non-finite latents count as null records.
        Event: Gaussian(σ), once.

        Args:
          records: all of them take part.
          event: what is charged; carries σ.
          encode: the posterior's mean and variances. The variances are never used un-noised.
          bound: R.
          weights: (a, b, c); a = 0 leaves the counts out.
          shared_second: one second moment over all classes, instead of one a class.
        """

        def contribution(images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            means, variances = encode(images, labels)
            clipped = clip_rows(means, bound)
            return clipped, clipped, variances

        return self.release_moments(records, event, contribution, bound, weights, shared_second)

    def feature_means(self, records: Records, event: Event, features: Features) -> Moments:
        """Per class the sum of features clipped to norm 1; no counts and no second moments.

        Sensitivity: one record contributes its features to the sum of its own class, a vector of norm at most 1, and
        nothing elsewhere. What features are must be a function of earlier answers (or public). Non-finite ones count as
        a null record's.
        Event: Gaussian(σ), once.

        Args:
          records: all of them take part.
          event: what is charged; carries σ.
          features: what is summed.
        """

        def contribution(images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            none = np.zeros((len(images), 0))
            return clip_rows(features(images), 1.0), none, none

        return self.release_moments(records, event, contribution, 1.0, (0.0, 1.0, 0.0), shared_second=True)

    def release_moments(
        self,
        records: Records,
        event: Event,
        contribution: Contribution,
        bound: float,
        weights: tuple[float, float, float],
        shared_second: bool,
    ) -> Moments:
        """Runs one one-time mechanism. Whoever gives answers again (`answers`), or weighs them (`audit`), overrides it."""
        self.ledger.bind(records.num_records, records.unit.in_full)
        self.charge(event)
        classes = max(records.num_classes, 1)
        counts = sums = seconds = None
        size = min(_CHUNK, records.num_records)
        with records.opened() as (all_images, all_labels):
            # How many calls, and of which shape, depends on N alone, never on how many records are held.
            for start in range(0, records.num_records, size):
                labels = all_labels[start : start + size]
                images = np.zeros((size, *records.image_shape), np.float32)
                images[: len(labels)] = all_images[start : start + size].astype(np.float32) / FULL_SCALE
                padded = np.concatenate([labels, np.zeros(size - len(labels), labels.dtype)])
                first, factor, diagonal = (part[: len(labels)] for part in contribution(images, padded))
                chunk = clipped_sums(first, factor, diagonal, labels, classes, bound, shared_second)
                if counts is None:
                    counts, sums, seconds = chunk
                else:
                    counts, sums, seconds = counts + chunk[0], sums + chunk[1], seconds + chunk[2]
        # One unit moves the sum by at most its records' contributions together.
        deviation = event.noise_multiplier * math.hypot(*weights) * records.unit.max_per_unit
        return noised_moments(counts, sums, seconds, deviation, bound, weights, self.entropy.generator())


def _check_draws(loss: ExampleLoss, batch: PoissonBatch) -> None:
    """A row for each place: one that stood for several would be broadcast without a word, and their draws be the same."""
    places = batch.mask.shape[1]
    needed = [(places, *one.shape, one.dtype.name) for one in specs_of_one(loss.private_draws)]
    brought = [(*rows.shape[1:], rows.dtype.name) for rows in batch.draws]
    if brought != needed:
        raise ValueError(f"The batch brings draws {brought} for its chunks, the loss needs {needed}.")


def _check_orthonormal(basis: np.ndarray) -> None:
    if not np.allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-5):
        raise ValueError("The basis must have orthonormal columns: a longer one would break the bound on projections.")
