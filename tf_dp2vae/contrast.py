"""Contrast: samples are stretched, for a decoder shows them greyer than records are.

A decoder shows the mean of all that it is unsure about, so its samples are greyer than records. One gain on the logits,
x = sigmoid(g·logits), takes back the part of that which one number can take back. The gain is read off an answer that is
there already: the class statistics hold the records' second moments at low frequencies, hence their mean energy E‖Qᵀx‖².
Digits, which are black or white, come out stretched. Of clothes it says little, for their energy hardly moves with the gain.
So where samples are matched to released features afterwards, the gain is a fixed one (`refinement`).

Everything here is post-processing of answers: no record is touched, and it costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf
from scipy.special import expit

from tf_dp2vae.dreams import image_bound, statistics_basis
from tf_dp2vae.moments import clip_rows

if TYPE_CHECKING:
    from tf_dp2vae.model import DP2VAE

_GAINS = np.geomspace(1.0, 3.0, 25)
"""Beyond 3 the energy hardly changes any more, and noise in the released one would choose the gain."""
_SAMPLES = 2_000


@keras.saving.register_keras_serializable("tf_dp2vae")
class Contrast(keras.Layer):
    """Logits to pixels, sigmoid(g·logits), with g = 1 until `match` is called. Nothing in it is trained.

    Attributes:
      gain: g, scalar.
      energy: what records have, E‖Qᵀx‖² as released; 0 where nothing released it.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**{**kwargs, "trainable": False})
        self.gain = self.add_weight(shape=(), initializer="ones", trainable=False, name="gain")
        self.energy = self.add_weight(shape=(), initializer="zeros", trainable=False, name="energy")
        self.built = True

    def call(self, logits: tf.Tensor) -> tf.Tensor:
        """[examples, height, width, channels] → the same shape, in [0, 1]."""
        return tf.sigmoid(self.gain.value * logits)

    def match(self, model: DP2VAE) -> None:
        """Sets the refinement's gain where it matches samples, else that which brings them nearest a released energy."""
        if model.refinement is not None and model.refinement.steps:
            self.gain.assign(model.refinement.gain)
            return
        if not float(self.energy):
            return
        key = tf.constant([model.seed, _SAMPLES])
        for_labels, for_latents = tf.unstack(tf.random.split(key, 2))
        labels = model.latent_prior.sample_labels(tf.constant(_SAMPLES), for_labels)
        logits = model.decode(model.latent_prior.sample(labels, for_latents), labels).numpy()
        missed = [abs(mean_energy(expit(gain * logits)) - float(self.energy)) for gain in _GAINS]
        self.gain.assign(_GAINS[int(np.argmin(missed))])


def mean_energy(images: np.ndarray) -> float:
    """E‖Qᵀx‖² as the class statistics would tell it, of images [n, height, width, channels] in [0, 1]."""
    shape = images.shape[1:]
    flat = images.reshape(len(images), -1)
    clipped = clip_rows(flat, image_bound(shape))
    return float(np.square(clipped @ statistics_basis(shape)).sum(1).mean())
