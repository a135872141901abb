"""What happens before the private phase, and whether the guarantee survives it.

| class           | the encoder learns from                    | guarantee                    |
|-----------------|--------------------------------------------|------------------------------|
| `Dreams`        | samples of noisily released statistics     | end to end                   |
| `Public`        | another, public data set                   | end to end                   |
| `NoPretraining` | the private phase itself (plain DP-VAE)    | end to end                   |
| `Unprotected`   | the records, without noise (as published)  | decoder, given the encoder   |

The paper's own mechanism is `Unprotected`. There every later gradient depends on an encoder that saw every record, so
the clip bounds nothing end to end; see docs/guarantee.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import keras
import numpy as np
import tensorflow as tf

from tf_dp2vae import dreams
from tf_dp2vae.accounting import CLASS_STATISTICS, DREAM_MOMENTS, FEATURE_MEANS
from tf_dp2vae.configuration import Configuration
from tf_dp2vae.mechanisms import Features
from tf_dp2vae.moments import Moments
from tf_dp2vae.networks import Projection
from tf_dp2vae.records import Records
from tf_dp2vae.sampling import unprotected_batches
from tf_dp2vae.validation import InvalidInputError, check, check_between, check_kind, check_positive, check_whole, times
from tf_dp2vae.wake_sleep import Sleep

if TYPE_CHECKING:
    from tf_dp2vae.model import DP2VAE

_BATCH = 256


@dataclass(frozen=True)
class Pretraining(Configuration):
    """What every way of pre-training says of itself.

    Attributes:
      end_to_end: whether everything the private phase depends on is a function of mechanism answers or public; a way that
        does not say so has no end-to-end guarantee.
      freezes_encoder: whether the private phase trains the decoder alone.
      private: whether what it releases hides any record at all; only a baseline's does not.
      is_whole_training: whether no private step follows, the latent prior being set too (see `baselines`).
      is_refined: whether a decoder is trained, which refinement may go on with.
    """

    end_to_end: ClassVar[bool] = False
    freezes_encoder: ClassVar[bool] = True
    private: ClassVar[bool] = True
    is_whole_training: ClassVar[bool] = False
    is_refined: ClassVar[bool] = True

    @property
    def shares(self) -> dict[str, float]:
        """The share of the budget that each of its releases takes."""
        return {}

    def describe(self) -> str:
        """A few words for the progress and the statement."""
        raise NotImplementedError

    def check_records(self, records: Records) -> None:
        """Refuses records that it cannot be used with, before anything is charged."""

    def run(self, model: DP2VAE, records: Records) -> None:
        """Pre-trains the model's networks."""
        raise NotImplementedError

    def callbacks(self, model: DP2VAE, epochs: int) -> list[keras.callbacks.Callback]:
        """What happens between the rounds of the private phase."""
        return []

    def feature_means(self, model: DP2VAE, records: Records, features: Features) -> Moments:
        """What refinement asks for, each class's sum of features: by the mechanism, for refinement's share."""
        assert model.plan is not None
        return model.mechanisms.feature_means(records, model.plan.release(FEATURE_MEANS), features)


@keras.saving.register_keras_serializable("tf_dp2vae")
@dataclass(frozen=True)
class NoPretraining(Pretraining):
    """Plain DP-VAE: encoder and decoder from scratch under one DP-SGD with one clip."""

    end_to_end: ClassVar[bool] = True
    freezes_encoder: ClassVar[bool] = False

    def describe(self) -> str:
        return "none: encoder and decoder are trained privately from scratch"

    def run(self, model: DP2VAE, records: Records) -> None:
        pass


@dataclass(frozen=True)
class WithoutNoise(Pretraining):
    """Ways that read the records themselves, WITHOUT NOISE: no end-to-end guarantee.

    Attributes:
      epochs: passes over the records.
      learning_rate: of Adam at the start; it falls along a cosine.
    """

    epochs: int = 10
    learning_rate: float = 2e-3

    def __post_init__(self) -> None:
        check_whole(epochs=self.epochs)
        check_positive(learning_rate=self.learning_rate)


@keras.saving.register_keras_serializable("tf_dp2vae")
@dataclass(frozen=True)
class Unprotected(WithoutNoise):
    """As published: encoder and a throw-away decoder learn from the records without noise. No end-to-end guarantee."""

    def describe(self) -> str:
        return f"UNPROTECTED: encoder pre-trained {self.epochs} epochs on the records themselves, without noise"

    def run(self, model: DP2VAE, records: Records) -> None:
        fresh = keras.models.clone_model(model.decoder)
        fresh.set_weights(model.decoder.get_weights())
        model.checkpoints.track("decoder as it began", fresh.variables)
        batches = unprotected_batches(records, _BATCH, model.seed)
        model.pretrain(batches, self.epochs * len(batches), self.learning_rate)
        # The decoder that saw records is thrown away: what is released starts from weights that never did.
        model.decoder.set_weights(fresh.get_weights())


@dataclass(frozen=True)
class _WithSleep(Pretraining):
    """Ways whose encoder may go on learning from the decoder's own samples.

    Attributes:
      steps: ordinary training steps of encoder and decoder, 256 images each.
      learning_rate: of Adam at the start, before the private phase (it falls along a cosine) and in sleep.
      sleep_steps: steps of each sleep; 0 leaves the encoder as it is.
    """

    steps: int = 2000
    learning_rate: float = 2e-3
    sleep_steps: int = 200

    def __post_init__(self) -> None:
        check_whole(steps=self.steps)
        check_positive(learning_rate=self.learning_rate)
        check_whole(minimum=0, sleep_steps=self.sleep_steps)

    def callbacks(self, model: DP2VAE, epochs: int) -> list[keras.callbacks.Callback]:
        return [Sleep(model, self.sleep_steps, self.learning_rate, last_epoch=epochs - 1)] if self.sleep_steps else []


@keras.saving.register_keras_serializable("tf_dp2vae")
@dataclass(frozen=True)
class Dreams(_WithSleep):
    """Encoder and decoder learn from samples of noisily released statistics. See `dreams`.

    Attributes:
      statistics_share: part of the budget for counts, means and principal components.
      moments_share: part of the budget for each class's covariance on those components.
      components: the most principal components that are kept.
    """

    end_to_end: ClassVar[bool] = True
    statistics_share: float = 0.10
    moments_share: float = 0.45
    components: int = 60

    def __post_init__(self) -> None:
        super().__post_init__()
        check_between(0, 1, statistics_share=self.statistics_share, moments_share=self.moments_share)
        check_whole(components=self.components)

    @property
    def shares(self) -> dict[str, float]:
        return {CLASS_STATISTICS: self.statistics_share, DREAM_MOMENTS: self.moments_share}

    def describe(self) -> str:
        return "dreams: samples of noisily released class statistics, whose cost is in the events"

    def run(self, model: DP2VAE, records: Records) -> None:
        dreamer = self.release(model, records)
        model.latent_prior.count(dreamer.classes)
        look_along(model.encoder, dreamer.basis, dreamer.spread)
        model.pretrain(_endless(dreamer, model.seed), self.steps, self.learning_rate)

    def release(self, model: DP2VAE, records: Records) -> dreams.DreamGenerator:
        """Asks for both releases and builds the generator."""
        assert model.plan is not None
        shape = records.image_shape
        bound, basis = dreams.image_bound(shape), dreams.statistics_basis(shape)
        mechanisms, plan = model.mechanisms, model.plan
        statistics = mechanisms.class_statistics(
            records, plan.release(CLASS_STATISTICS), basis, bound, STATISTICS_WEIGHTS
        )
        held = records.about_held(statistics.classes().counts.sum())
        model.contrast.energy.assign(max(np.trace(statistics.seconds[0]) / held, 0.0))
        found = dreams.components(statistics, basis, self.components)

        def coordinates(images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            centred = images.reshape(len(images), -1) - found.means[labels]
            factors = centred @ found.basis
            return factors, np.zeros_like(factors)

        moments = mechanisms.latent_moments(
            records,
            plan.release(DREAM_MOMENTS),
            coordinates,
            _FACTOR_BOUND * bound,
            MOMENT_WEIGHTS,
            shared_second=False,
        )
        return dreams.generator(found, moments, shape)


def look_along(encoder: keras.Model, basis: np.ndarray, spread: np.ndarray) -> None:
    """Has an encoder behind a `Projection` see coordinates on `basis`, [pixels, d], each divided by its spread, [d]."""
    for layer in encoder.layers:
        if isinstance(layer, Projection):
            layer.assign(basis, 1 / np.maximum(spread, _LEAST_SPREAD))


_LEAST_SPREAD = 0.01
"""Below this a coordinate of images in [0, 1] is noise, and to stretch it to unit size would drown the others."""
_FACTOR_BOUND = 0.6
"""Bound on an image's distance from its class mean, as a fraction of the bound on images: noise falls with its square."""
STATISTICS_WEIGHTS = (0.25, 1.0, 1.0)
"""(a, b, c): of a record's count, sum and second moment in its bounded contribution. Counts are in the thousands and bear
four times the noise."""
MOMENT_WEIGHTS = (0.0, 0.5, 1.0)
"""The same: counts are known already, and of the two others covariances are what dreams need more."""


def _endless(dreamer: dreams.DreamGenerator, seed: int) -> tf.data.Dataset:
    def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        random = np.random.default_rng(seed)
        while True:
            labels = dreamer.sample_labels(_BATCH, random)
            yield dreamer.sample(labels, random), labels.astype(np.int32)

    signature = (tf.TensorSpec([_BATCH, *dreamer.image_shape], tf.float32), tf.TensorSpec([_BATCH], tf.int32))
    return tf.data.Dataset.from_generator(batches, output_signature=signature).prefetch(2)


@keras.saving.register_keras_serializable("tf_dp2vae")
@dataclass(frozen=True)
class Public(_WithSleep):
    """Encoder and decoder learn from another, public data set, which costs nothing.

    That it is public is its owner's word: to compare images would make what happens depend on records. Only the records
    themselves, given twice, are refused.

    Attributes:
      data: public records; not saved with the model.
    """

    end_to_end: ClassVar[bool] = True
    data: Records | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_kind(Records, "make them of arrays by checked_records(images, labels, num_classes)", data=self.data)

    def describe(self) -> str:
        return "public: another data set, which is not protected by this statement"

    def check_records(self, records: Records) -> None:
        data = self.data
        if data is None:
            raise InvalidInputError(
                "pretraining is public but has no data, which no file keeps: build a new model with Public(data=…)."
            )
        check(
            data.image_shape == records.image_shape and data.num_classes == records.num_classes,
            f"public images are {times(data.image_shape)} with {data.num_classes} classes, the records "
            f"{times(records.image_shape)} with {records.num_classes}: they must be alike.",
        )
        check(
            not data.stored_with(records),
            "the public data are the records, which would be learned from without noise: name another data set.",
        )

    def run(self, model: DP2VAE, records: Records) -> None:
        assert self.data is not None
        model.pretrain(unprotected_batches(self.data, _BATCH, model.seed), self.steps, self.learning_rate)

    def get_config(self) -> dict[str, Any]:
        """Everything but the data."""
        return {name: value for name, value in super().get_config().items() if name != "data"}
