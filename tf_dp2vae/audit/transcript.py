"""The strongest attack on the sound way: the likelihood ratio of every answer that a run gave.

With `dreams` the encoder depends on noise, so matching encoders means nothing. The attacker gets more than the release:
every mechanism's answer, for a record whose contribution reaches every clip. No test of D against D′ beats the likelihood
ratio (Neyman and Pearson 1933), so its measured lower bound must stay below the claim, and must exceed it once one
mechanism's noise is left out. D′ is D with one record nulled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import tensorflow as tf

from tf_dp2vae import planning
from tf_dp2vae.accounting import (
    CLASS_STATISTICS,
    DREAM_MOMENTS,
    FEATURE_MEANS,
    GRADIENT_SUM,
    LATENT_MOMENTS,
    Event,
    Privacy,
)
from tf_dp2vae.dreams import frequency_basis
from tf_dp2vae.gradients import BookKeepingEngine
from tf_dp2vae.ledger import Ledger
from tf_dp2vae.mechanisms import Mechanisms
from tf_dp2vae.model import DP2VAE
from tf_dp2vae.moments import Moments
from tf_dp2vae.networks import build_decoder, build_encoder
from tf_dp2vae.optimizers import DPSGD
from tf_dp2vae.pretraining import MOMENT_WEIGHTS, STATISTICS_WEIGHTS, Dreams
from tf_dp2vae.priors import PRIOR_WEIGHTS
from tf_dp2vae.randomness import SystemEntropy
from tf_dp2vae.records import FULL_SCALE, Records
from tf_dp2vae.sampling import PoissonBatch, PoissonSource, no_draws

_HARDLY_ANY = 1e-6
"""Stands for no noise: without any, no event describes the answer and no density exists."""


def gaussian_log_ratio(answer: np.ndarray, mean_in: np.ndarray, mean_out: np.ndarray, deviation: float) -> float:
    """ln N(answer; mean_in, s²I) − ln N(answer; mean_out, s²I).

    Args:
      answer, mean_in, mean_out: of equal shape and unit.
      deviation: s, in that unit.
    """
    towards_in = np.sum((answer - mean_out) ** 2) - np.sum((answer - mean_in) ** 2)
    return float(towards_in / (2 * deviation**2))


class TranscriptMechanisms(Mechanisms):
    """The mechanisms, with an attacker listening who knows D, D′, every weight, and which other records were drawn.

    Attributes:
      log_ratio: ln p(one-time answers so far | D) − ln p(… | D′).
      drawn_log_ratio: of the gradient sum traced last, ln p(answer | target drawn) − ln p(answer | target not drawn).
    """

    def __init__(self, neighbours: tuple[Records, Records], target: np.ndarray, target_label: int):
        """A ledger in memory, noise from the operating system.

        Args:
          neighbours: D and D′.
          target: the image that D has and D′ lacks, [height, width, channels], uint8; unlike any other.
          target_label: its label.
        """
        super().__init__(Ledger(), SystemEntropy())
        self.log_ratio, self._neighbours = 0.0, neighbours
        self._noiseless = Mechanisms(Ledger(), self.entropy)
        self._target = tf.constant(target)
        self._target_label = target_label

    def release_moments(self, records: Records, event: Event, *arguments: Any, **named: Any) -> Moments:
        """The mechanism's answer; the attacker weighs it."""
        answer = super().release_moments(records, event, *arguments, **named)
        self._weigh(answer, event, *arguments, **named)
        return answer

    def _weigh(self, answer: Moments, event: Event, *arguments: Any, **named: Any) -> None:
        silent = replace(event, noise_multiplier=_HARDLY_ANY * event.noise_multiplier)
        expected = [self._noiseless.release_moments(world, silent, *arguments, **named) for world in self._neighbours]
        if answer.counts is not None:
            self.log_ratio += gaussian_log_ratio(answer.counts, *(m.counts for m in expected), answer.count_noise)
        self.log_ratio += gaussian_log_ratio(answer.sums, *(m.sums for m in expected), answer.sum_noise)
        # Each entry off the diagonal stands twice, with noise √2 smaller: counted once, at the diagonal's noise, it is
        # √2 larger. The sum over the whole matrix at the diagonal's noise is exactly that.
        if answer.seconds.size:
            self.log_ratio += gaussian_log_ratio(answer.seconds, *(m.seconds for m in expected), answer.second_noise)

    def gradient_sum(self, engine, loss, batch, variables, l2_norm_clip, noise_multiplier):
        """The mechanism's answer, and `drawn_log_ratio` of it."""
        answer = super().gradient_sum(engine, loss, batch, variables, l2_norm_clip, noise_multiplier)
        is_target = tf.reduce_all(batch.images == self._target, axis=(2, 3, 4))
        others = batch._replace(mask=tf.where(is_target, tf.zeros_like(batch.mask), batch.mask))
        known, _ = super().gradient_sum(engine, loss, others, variables, l2_norm_clip, 0.0)
        alone, _ = super().gradient_sum(engine, loss, self._alone(batch), variables, l2_norm_clip, 0.0)
        rest, target = _flat(answer[0]) - _flat(known), _flat(alone)
        variance = (noise_multiplier * l2_norm_clip) ** 2
        self.drawn_log_ratio = tf.reduce_sum(rest * target - tf.square(target) / 2) / variance
        return answer

    def _alone(self, batch: PoissonBatch) -> PoissonBatch:
        """A batch of the target and nobody else."""
        one = tf.ones([1, 1], tf.int32)
        return batch._replace(
            images=self._target[None, None],
            labels=self._target_label * one,
            mask=tf.cast(one, tf.uint8),
            num_chunks=tf.constant(1),
        )


def _flat(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
    return tf.concat([tf.reshape(tf.cast(tensor, tf.float64), [-1]) for tensor in tensors], axis=0)


class _KnownDraws:
    """The model's losses at the latent means: draws of z are one more thing that this attacker is told."""

    def __init__(self, model: DP2VAE):
        self._model, self.losses, self.private_draws = model, model.losses, no_draws

    def prepare(
        self, images: tf.Tensor, labels: tf.Tensor, draws: tuple[tf.Tensor, ...]
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        return images, labels, tf.zeros([images.shape[0], 1, self._model.latent_dim])


class TranscriptAudit:
    """`--pretrain dreams` at a worst-case record: both releases for the dreams, DP-SGD steps, the latent
    moments, the feature means.

    The target is all white: beyond the bound on images, along the basis's first vector, with a gradient above the clip.
    Both moments are asked for under an encoder that puts it out of bounds, as a transcript's earlier answers may happen
    to do. Pre-training in between is post-processing, tells the attacker nothing, and is left out.
    """

    _SHAPE, _CLASSES, _LATENT, _IMAGE_BOUND = (8, 8, 1), 2, 2, 3.0

    def __init__(
        self,
        privacy: Privacy,
        steps: int = 8,
        sampling_rate: float = 0.25,
        num_records: int = 16,
        unnoised: str | None = None,
    ):
        """Plans the run as `DP2VAE.fit` would.

        Args:
          privacy: the claim.
          steps: private steps.
          sampling_rate: q.
          num_records: N.
          unnoised: a mechanism whose noise is left out, to see that the audit notices; None for the sound one.
        """
        random = np.random.default_rng(0)
        images = random.integers(0, 128, (num_records, *self._SHAPE)).astype(np.uint8)
        images[0] = FULL_SCALE
        labels = (np.arange(num_records) % self._CLASSES).astype(np.int32)
        without = Records(images[1:], labels[1:], self._CLASSES, num_null=1, positions=np.arange(1, num_records))
        self._worlds = without, Records(images, labels, self._CLASSES)
        self.mechanisms = TranscriptMechanisms((self._worlds[1], self._worlds[0]), images[0], int(labels[0]))
        encoder, decoder = (
            build(self._SHAPE, self._LATENT, self._CLASSES, 1) for build in (build_encoder, build_decoder)
        )
        self._basis = frequency_basis(self._SHAPE, self._SHAPE[0])
        model = DP2VAE(encoder, decoder, privacy=privacy, pretraining=Dreams())
        planned = planning.plan(privacy, sampling_rate, steps, model.shares)
        self.plan = _without_noise(planned, unnoised)
        self._variables = decoder.trainable_variables
        self._initial = [variable.numpy() for variable in self._variables]
        self._optimizer, self._engine, self._loss = DPSGD(learning_rate=0.1), BookKeepingEngine(), _KnownDraws(model)
        self._optimizer.configure(privacy.l2_norm_clip, self.plan.noise_multiplier, sampling_rate * num_records)
        self._optimizer.build(self._variables)
        entropy = self.mechanisms.entropy
        num_weights = sum(value.size for value in self._initial)
        self._sources = [
            PoissonSource(world, sampling_rate, num_records, entropy, num_weights) for world in self._worlds
        ]

    def log_ratio(self, member: bool) -> float:
        """ln p(transcript | D) − ln p(transcript | D′) of one run, on D if `member` and on D′ otherwise."""
        records, self.mechanisms.log_ratio = self._worlds[member], 0.0
        for variable, value in zip(self._variables, self._initial):
            variable.assign(value)
        self.mechanisms.class_statistics(
            records, self.plan.release(CLASS_STATISTICS), self._basis, self._IMAGE_BOUND, STATISTICS_WEIGHTS
        )
        self._far_moments(records, DREAM_MOMENTS, MOMENT_WEIGHTS)
        drawn = []
        for _ in range(self.plan.steps):
            self.mechanisms.charge(self.plan.step)
            drawn.append(float(self._step(self._sources[member].batch())))
        self._far_moments(records, LATENT_MOMENTS, PRIOR_WEIGHTS)
        self.mechanisms.feature_means(records, self.plan.release(FEATURE_MEANS), _far_features)
        q = self.plan.sampling_rate
        return self.mechanisms.log_ratio + float(np.logaddexp(np.log1p(-q), np.log(q) + np.array(drawn)).sum())

    @tf.function(reduce_retracing=True, autograph=False)
    def _step(self, batch: PoissonBatch) -> tf.Tensor:
        def noised_sum(variables: Any, l2_norm_clip: float, noise_multiplier: float) -> list[tf.Tensor]:
            return self.mechanisms.gradient_sum(
                self._engine, self._loss, batch, variables, l2_norm_clip, noise_multiplier
            )[0]

        gradients = self._optimizer.private_gradients(noised_sum, self._variables)
        self._optimizer.apply(gradients, self._variables)
        return self.mechanisms.drawn_log_ratio

    def _far_moments(self, records: Records, mechanism: str, weights: tuple[float, float, float]) -> None:
        """Moments under an encoder of the attacker's choice, which puts the target beyond the bound."""
        self.mechanisms.latent_moments(
            records, self.plan.release(mechanism), _far_latents, 1.0, weights, shared_second=False
        )


def _far_latents(images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    latents = 4.0 * images.reshape(len(images), -1)[:, :2]
    return latents, np.zeros_like(latents)


def _far_features(images: np.ndarray) -> np.ndarray:
    return 4.0 * images.reshape(len(images), -1)[:, :2]


def _without_noise(plan: planning.Plan, mechanism: str | None) -> planning.Plan:
    if mechanism == GRADIENT_SUM:
        return replace(plan, noise_multiplier=_HARDLY_ANY)
    releases = (replace(e, noise_multiplier=_HARDLY_ANY) if e.mechanism == mechanism else e for e in plan.releases)
    return replace(plan, releases=tuple(releases))
