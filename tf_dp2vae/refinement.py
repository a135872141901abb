"""Refinement: what one more noisy release makes of a trained decoder.

The last release tells the mean of each class's scattering features (`scattering`). It is used twice, for nothing more:

  1. *Matching.* The decoder is trained on its own samples until their mean features are the released ones, while it is held
     near the images that DP-SGD taught it. This takes the marks of DP-SGD's noise out of the samples, and puts edges in.
  2. *Judging.* Fisher's discriminant between the released means chooses among candidates whenever the sampler is asked
     for an image of a class (`judge`).

Reference: matching of means in a feature space, as in DP-MERF (Harder, Adamczewski, Park 2021), from another release and
with a generator that is trained already.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import keras
import numpy as np
import tensorflow as tf

from tf_dp2vae.accounting import FEATURE_MEANS
from tf_dp2vae.configuration import Configuration
from tf_dp2vae.judge import Judge
from tf_dp2vae.moments import Moments
from tf_dp2vae.records import Records
from tf_dp2vae.validation import check, check_between, check_positive, check_whole

if TYPE_CHECKING:
    from tf_dp2vae.model import DP2VAE

_BATCH = 240
_NORMALISED_ON, _JUDGED_ON = 2_000, 20_000
_AT_ONCE = 500
_PURPOSE = 31
"""Sets the seeds here apart from those of pre-training and sleep."""


@keras.saving.register_keras_serializable("tf_dp2vae")
@dataclass(frozen=True)
class Refinement(Configuration):
    """One release of mean features, the decoder's matching to them, and the judge.

    Sums are divided by how many records the latent prior counted in each class; where nothing released that, classes count
    as equally large.

    Attributes:
      share: part of the budget for the release.
      steps: of the matching, 240 samples each.
      learning_rate: of Adam at its start; it falls along a cosine.
      gain: on the logits of samples that are matched, before the matching and for good (`contrast`).
      temperature: of the latents of samples that are matched, before the matching and for good: above 1 they are drawn
        further apart than the released covariances say.
      anchor: weight of the squared distance, in pixels, from the images before the matching.
      candidates: how many samples the judge chooses one from; 1 turns it off.
    """

    share: float = 0.10
    steps: int = 300
    learning_rate: float = 1e-3
    gain: float = 3.0
    temperature: float = 1.0
    anchor: float = 0.5
    candidates: int = 4

    def __post_init__(self) -> None:
        check_between(0, 1, share=self.share)
        check_whole(minimum=0, steps=self.steps)
        check_positive(learning_rate=self.learning_rate, gain=self.gain, temperature=self.temperature)
        check_whole(candidates=self.candidates)
        check(
            self.steps > 0 or self.candidates > 1,
            "steps=0 with candidates=1 would pay for a release and use it for nothing: leave refinement out "
            "(--refine-share 0), match (--refine-steps), or let the judge choose (--candidates).",
        )
        check(self.anchor >= 0, f"anchor={self.anchor!r} must be at least 0: 0 lets samples go anywhere.")

    @property
    def shares(self) -> dict[str, float]:
        """The share of the budget that its release takes."""
        return {FEATURE_MEANS: self.share}

    def describe(self) -> str:
        """A few words for the progress."""
        return "refinement: samples matched to means of features, and a judge among them"

    def run(self, model: DP2VAE, records: Records) -> None:
        """Asks for the release, matches the model's decoder to it, and sets the model's judge."""
        judge, samples = model.judge, _Samples(model)
        judge.normalise(samples.images(_balanced(model, _NORMALISED_ON)))
        featured = tf.function(judge.features, reduce_retracing=True, autograph=False)
        answer = model.pretraining.feature_means(model, records, lambda images: featured(tf.constant(images)).numpy())
        held = records.about_held(float(model.latent_prior.counted))
        target = Target.of(answer, model.latent_prior.frequencies.numpy() * held)
        if self.steps:
            self._match(model, samples, target)
        _teach(judge, samples, target, model.latent_prior.frequencies.numpy())

    def _match(self, model: DP2VAE, samples: _Samples, target: Target) -> None:
        """Adam on the decoder, against the distance between mean features of samples and released ones."""
        labels = _balanced(model, _BATCH)
        classes = model.latent_prior.num_classes
        before = keras.models.clone_model(model.decoder)
        before.set_weights(model.decoder.get_weights())
        variables = model.decoder.trainable_variables
        optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(self.learning_rate, self.steps, 0.05))
        optimizer.build(variables)
        means, weights = tf.constant(target.means, tf.float32), tf.constant(target.trust, tf.float32)
        scale = tf.square(model.judge.bound.value)

        def step(index: tf.Tensor) -> None:
            with tf.GradientTape() as tape:
                latent = samples.latents(labels, index)
                images = samples.decoded(model.decoder, latent, labels)
                found = tf.reshape(model.judge.features(images), [classes, 2, -1, model.judge.num_features])
                # The product of two halves' distances has the mean of a square without the samples' own variance, which
                # a square would have the decoder make small.
                missed = tf.reduce_mean(found, 2) - means[:, None]
                distance = scale * tf.reduce_mean(weights * tf.reduce_sum(missed[:, 0] * missed[:, 1], -1))
                moved = tf.square(images - samples.decoded(before, latent, labels))
                loss = distance + self.anchor * tf.reduce_mean(tf.reduce_sum(moved, (1, 2, 3)))
            optimizer.apply(tape.gradient(loss, variables), variables)

        compiled, bar = tf.function(step, autograph=False), model.shown.bar(self.steps)
        for index in range(self.steps):
            compiled(tf.constant(index))
            bar.update(index + 1)


@dataclass(frozen=True)
class Target:
    """What was released, as means.

    Attributes:
      means: of each class's features, [classes, features].
      trust: [classes], from 0 where noise drowns a class's mean to 1 where there is none.
      noise_variance: of each entry of the means, over all records.
    """

    means: np.ndarray
    trust: np.ndarray
    noise_variance: float

    @classmethod
    def of(cls, answer: Moments, counts: np.ndarray) -> Target:
        """From the noisy sums and the (noisy) number of records in each class."""
        counts = np.maximum(counts, 1.0)
        variance = np.square(answer.sum_noise / counts)
        # Features have norm 1 at most; the noise on a mean has this norm, squared.
        trust = 1 / (1 + answer.sums.shape[1] * variance)
        return cls(answer.sums / counts[:, None], trust, float(np.average(variance, weights=counts)))


class _Samples:
    """What a model's decoder shows, from public seeds."""

    def __init__(self, model: DP2VAE):
        self._model = model

    def labels(self, num: int) -> np.ndarray:
        """At the released frequencies, [num]."""
        seed = tf.constant([self._model.seed, _PURPOSE])
        return self._model.latent_prior.sample_labels(tf.constant(num), seed).numpy()

    def latents(self, labels: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
        """Of the labels, others for each index."""
        return self._model.latent_prior.sample(labels, tf.stack([index, self._model.seed + _PURPOSE]))

    def decoded(self, decoder: keras.Model, latent: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """Images in [0, 1] by one decoder or another."""
        logits = self._model.decode(latent, labels, lambda _, inputs: decoder(inputs))
        return self._model.contrast(tf.ensure_shape(logits, [None, *self._model.image_shape]))

    def images(self, labels: np.ndarray) -> np.ndarray:
        """Of the labels, [n, height, width, channels]."""
        return np.concatenate(list(self._parts(labels)))

    def features(self, labels: np.ndarray) -> np.ndarray:
        """Of images of the labels, [n, features]."""
        return np.concatenate([self._model.judge.features(tf.constant(part)).numpy() for part in self._parts(labels)])

    def _parts(self, labels: np.ndarray) -> Iterator[np.ndarray]:
        for start in range(0, len(labels), _AT_ONCE):
            part = tf.constant(labels[start : start + _AT_ONCE])
            latent = self.latents(part, tf.constant(-1 - start))
            yield self.decoded(self._model.decoder, latent, part).numpy()


def _teach(judge: Judge, samples: _Samples, target: Target, frequencies: np.ndarray) -> None:
    """Sets the judge: released means, as far as they can be trusted, and the samples' covariance within classes."""
    labels = samples.labels(_JUDGED_ON)
    found, means = samples.features(labels), target.means.copy()
    for label in np.unique(labels):
        own = found[labels == label].mean(0)
        means[label] = own + target.trust[label] * (target.means[label] - own)
        found[labels == label] -= own
    judge.assign_discriminant(means, found.T @ found / len(found), frequencies, target.noise_variance)


def _balanced(model: DP2VAE, num: int) -> np.ndarray:
    """About `num` labels, an even number of each class, class by class."""
    classes = model.latent_prior.num_classes
    return np.repeat(np.arange(classes, dtype=np.int32), max(2, num // (2 * classes) * 2))
