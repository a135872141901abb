"""Encoder and decoder builders: functional Keras models, small on purpose.

DP-SGD's noise falls on every weight, so a weight has to earn its place. No layer mixes examples.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterable, Iterator
from typing import Any, SupportsIndex

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from tf_dp2vae.dreams import frequency_basis
from tf_dp2vae.validation import InvalidInputError, check, check_whole

_PROJECTED = 64
_GROUPS = 4
ACCEPTED_SIZES = "height and width multiples of 4 from 8 to 64, with 1 or 3 channels (28×28×1, 32×32×3, 64×64×3, …)"


def checked_image_shape(image_shape: Iterable[SupportsIndex]) -> tuple[int, int, int]:
    """(height, width, channels), after refusing shapes that the builders cannot serve, saying what they can."""
    try:
        height, width, channels = (operator.index(size) for size in image_shape)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            f"image_shape={image_shape!r} must be (height, width, channels), such as (28, 28, 1)."
        ) from error
    fits = all(8 <= side <= 64 and side % 4 == 0 for side in (height, width)) and channels in (1, 3)
    check(fits, f"images of {height}×{width}×{channels} are not supported: accepted are {ACCEPTED_SIZES}.")
    return height, width, channels


@keras.saving.register_keras_serializable("tf_dp2vae")
class Projection(keras.Layer):
    """Coordinates of an image on a fixed basis, scaled: f = (x B) ∘ s. Nothing in it is trained.

    It starts as the lowest spatial frequencies, a constant. Pre-training may replace them by directions that it learned
    without a record's help (`assign`). An encoder behind it sees only what a coarse generator can also show it, so what
    it learns asleep still holds on records.
    """

    def __init__(self, units: int, image_shape: tuple[int, int, int], **kwargs: Any):
        """Args: number of coordinates; (height, width, channels)."""
        super().__init__(**{**kwargs, "trainable": False})
        self.units, self.image_shape = units, tuple(image_shape)
        pixels = math.prod(self.image_shape)
        self.basis = self.add_weight(shape=(pixels, units), initializer="zeros", trainable=False, name="basis")
        self.scale = self.add_weight(shape=(units,), initializer="ones", trainable=False, name="scale")
        self.flatten = layers.Flatten("channels_last", trainable=False)
        self.built = True
        self.assign(frequency_basis(self.image_shape, _frequencies(units, self.image_shape)), np.ones(units))

    def assign(self, basis: np.ndarray, scale: np.ndarray) -> None:
        """Sets the basis, [pixels, at most `units`], and its scale; coordinates beyond it are zero."""
        kept = min(basis.shape[1], self.units)
        wide = np.zeros(self.basis.shape, np.float32)
        wide[:, :kept] = basis[:, :kept]
        self.basis.assign(wide)
        self.scale.assign(np.concatenate([scale[:kept], np.ones(self.units - kept)]))

    def call(self, images: tf.Tensor) -> tf.Tensor:
        """[examples, height, width, channels] → [examples, units]."""
        return tf.matmul(self.flatten(images), self.basis.value) * self.scale.value

    def get_config(self) -> dict[str, Any]:
        """Keras's, with the sizes."""
        return {**super().get_config(), "units": self.units, "image_shape": self.image_shape}


def _frequencies(units: int, image_shape: tuple[int, int, int]) -> int:
    """Frequencies per axis whose square gives each channel its part of the units."""
    return min(math.isqrt(max(units // image_shape[2], 1)), *image_shape[:2])


def build_encoder(
    image_shape: tuple[int, int, int], latent_dim: int, num_classes: int = 0, width: int = 32, seed: int = 0
) -> keras.Model:
    """q(z|x, y): images (and one-hot labels) to the mean and log-variance of a diagonal Gaussian.

    A fixed projection and two dense layers: the encoder has to be quick and hard to fool, not deep.

    Args:
      image_shape: (height, width, channels).
      latent_dim: dimensions of z.
      num_classes: size of the label set; 0 for an encoder without labels.
      width: an eighth of the units in each hidden layer.
      seed: of the initial weights.

    Returns:
      Functional model, [image] or [image, label] → [mean, log_variance], each [examples, latent_dim].

    Raises:
      InvalidInputError: a shape that the networks cannot have, or a size below 1.
    """
    image_shape = checked_image_shape(image_shape)
    check_whole(latent_dim=latent_dim, width=width)
    check_whole(minimum=0, num_classes=num_classes)
    init = _initializers(seed)
    image = keras.Input(image_shape, name="image")
    inputs, hidden = [image], Projection(_PROJECTED, image_shape, name="projection")(image)
    if num_classes:
        inputs.append(keras.Input((num_classes,), name="label"))
        hidden = layers.Concatenate()([hidden, inputs[1]])
    for _ in range(2):
        hidden = layers.Dense(8 * width, activation="elu", kernel_initializer=next(init))(hidden)
    mean = layers.Dense(latent_dim, name="mean", kernel_initializer=next(init))(hidden)
    log_variance = layers.Dense(latent_dim, name="log_variance", kernel_initializer=next(init))(hidden)
    return keras.Model(inputs, [mean, log_variance], name="encoder")


def build_decoder(
    image_shape: tuple[int, int, int],
    latent_dim: int,
    num_classes: int = 0,
    width: int = 32,
    seed: int = 0,
    blocks: int = 0,
) -> keras.Model:
    """p(x|z, y): latents (and one-hot labels) to the logits of a Bernoulli for each pixel.

    Convolutions at coarse resolution whose channels are then spread over space (sub-pixel convolution, Shi et al. 2016)
    cost a quarter of transposed ones of equal reach, and a label's own image enters the logits directly.

    Args: as for `build_encoder`; `width` is the number of channels at a quarter of the resolution, `blocks` the number of
      residual blocks there (He et al. 2016), of two convolutions with group normalisation (Wu and He 2018) each.

    Returns:
      Functional model, [latent] or [latent, label] → logits [examples, height, width, channels].

    Raises:
      InvalidInputError: as for `build_encoder`.
    """
    image_shape = checked_image_shape(image_shape)
    check_whole(latent_dim=latent_dim, width=width)
    check_whole(minimum=0, num_classes=num_classes, blocks=blocks)
    init = _initializers(seed)
    height, across, channels = image_shape
    latent = keras.Input((latent_dim,), name="latent")
    inputs, hidden = [latent], latent
    if num_classes:
        inputs.append(keras.Input((num_classes,), name="label"))
        hidden = layers.Concatenate()(inputs)
    small = (height // 4, across // 4, width)
    hidden = layers.Dense(small[0] * small[1] * small[2], activation="elu", kernel_initializer=next(init))(hidden)
    hidden = layers.Reshape(small)(hidden)
    for _ in range(blocks):
        hidden = _residual_block(hidden, init)
    hidden = _convolution(4 * max(width // 2, 1), next(init))(hidden)
    hidden = layers.Activation("elu")(_doubled(hidden))
    logits = _doubled(_convolution(4 * channels, next(init))(hidden))
    if num_classes:
        of_label = layers.Dense(height * across * channels, use_bias=False, kernel_initializer=next(init))(inputs[1])
        logits = layers.Add()([logits, layers.Reshape(image_shape)(of_label)])
    return keras.Model(inputs, logits, name="decoder")


def _residual_block(tensor: keras.KerasTensor, init: Iterator[keras.initializers.Initializer]) -> keras.KerasTensor:
    """The tensor and what two normalised convolutions make of it. Groups of an example's channels mix no examples."""
    width, hidden = int(tensor.shape[-1]), tensor
    for _ in range(2):
        hidden = _convolution(width, next(init))(hidden)
        hidden = layers.GroupNormalization(math.gcd(_GROUPS, width))(hidden)
        hidden = layers.Activation("elu")(hidden)
    return layers.Add()([tensor, hidden])


def _convolution(filters: int, initializer: keras.initializers.Initializer) -> layers.Conv2D:
    """Of 3×3 pixels. Channels come last here, whatever Keras is set to."""
    return layers.Conv2D(filters, 3, padding="same", data_format="channels_last", kernel_initializer=initializer)


def _doubled(tensor: keras.KerasTensor) -> keras.KerasTensor:
    """Twice the height and width, a quarter of the channels."""
    height, width, channels = (int(size) for size in tensor.shape[1:])
    tensor = layers.Reshape((height, width, 2, 2, channels // 4))(tensor)
    tensor = layers.Permute((1, 3, 2, 4, 5))(tensor)
    return layers.Reshape((2 * height, 2 * width, channels // 4))(tensor)


def _initializers(seed: int) -> Iterator[keras.initializers.Initializer]:
    """A Glorot initializer of its own for each layer."""
    for layer_seed in itertools.count(1_000 * seed):
        yield keras.initializers.GlorotUniform(seed=layer_seed)
