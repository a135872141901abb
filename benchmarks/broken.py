"""Private steps with one break planted in each: what audits are there to catch. Never import this to train."""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import numpy as np
import tensorflow as tf

from tf_dp2vae.audit.dirac import SOUND, Parts
from tf_dp2vae.gradients import BookKeepingEngine
from tf_dp2vae.ledger import Ledger
from tf_dp2vae.mechanisms import Mechanisms
from tf_dp2vae.sampling import PoissonSource

_NEXT_TO_NONE = 1e-6


class WithoutClip(BookKeepingEngine):
    """Sums whole gradients."""

    def clipped_sum(self, loss, batch, mask, variables, l2_norm_clip):
        return super().clipped_sum(loss, batch, mask, variables, math.inf)


class ClipPerLayer(BookKeepingEngine):
    """Clips each variable's gradient to C by itself, while the event counts one clip."""

    def clipped_sum(self, loss, batch, mask, variables, l2_norm_clip):
        clip = super().clipped_sum
        parts = [clip(loss, batch, mask, [variable], l2_norm_clip) for variable in variables]
        return [total for (total,), _ in parts], parts[0][1]


class HalfTheNoise(Mechanisms):
    """Charges σ and adds noise of σ/2."""

    def gradient_sum(self, engine, loss, batch, variables, l2_norm_clip, noise_multiplier):
        return super().gradient_sum(engine, loss, batch, variables, l2_norm_clip, noise_multiplier / 2)


class DivisionByTheDrawn(Mechanisms):
    """What the optimizer divides by q·N comes out divided by the number drawn."""

    def __init__(self, expected_batch_size, ledger, entropy):
        super().__init__(ledger, entropy)
        self._expected = expected_batch_size

    def gradient_sum(self, engine, loss, batch, variables, l2_norm_clip, noise_multiplier):
        sums, mean = super().gradient_sum(engine, loss, batch, variables, l2_norm_clip, noise_multiplier)
        drawn = tf.maximum(tf.reduce_sum(tf.cast(batch.mask, tf.float32)), 1.0)
        return [total * self._expected / drawn for total in sums], mean


class OneBatchForAllSteps(PoissonSource):
    """Draws once, and gives that batch to every step (with fresh noise)."""

    _drawn: np.ndarray | None = None

    def draw(self):
        if self._drawn is None:
            self._drawn = super().draw()
        return self._drawn


class StatisticsWithoutNoise(Mechanisms):
    """Charges the class statistics and gives them as they are."""

    def class_statistics(self, records, event, *arguments, **named):
        self.charge(event)
        silent = replace(event, noise_multiplier=_NEXT_TO_NONE * event.noise_multiplier)
        return Mechanisms(Ledger(), self.entropy).class_statistics(records, silent, *arguments, **named)


class FeaturesWithoutNoise(Mechanisms):
    """Charges the sums of features and gives them as they are."""

    def feature_means(self, records, event, features):
        self.charge(event)
        silent = replace(event, noise_multiplier=_NEXT_TO_NONE * event.noise_multiplier)
        return Mechanisms(Ledger(), self.entropy).feature_means(records, silent, features)


class StatisticsWithoutClip(Mechanisms):
    """Bounds images by ten times the bound that the noise is scaled to."""

    def class_statistics(self, records, event, basis, bound, weights):
        answer = super().class_statistics(records, event, basis, 10 * bound, weights)
        return replace(answer, sum_noise=answer.sum_noise / 10, second_noise=answer.second_noise / 100)


def variants(expected_batch_size: float) -> dict[str, Parts]:
    """Each break by its name, and the sound parts first."""
    return {
        "sound": SOUND,
        "no clipping": Parts(engine=WithoutClip),
        "half the noise": Parts(mechanisms=HalfTheNoise),
        "division by the drawn batch": Parts(mechanisms=functools.partial(DivisionByTheDrawn, expected_batch_size)),
        "reused batch": Parts(source=OneBatchForAllSteps),
        "per-layer clip counted once": Parts(engine=ClipPerLayer),
        "un-noised statistics": Parts(mechanisms=StatisticsWithoutNoise),
        "un-noised features": Parts(mechanisms=FeaturesWithoutNoise),
        "statistics under another bound": Parts(mechanisms=StatisticsWithoutClip),
    }
