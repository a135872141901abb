"""Augmentations of records inside the gradient mechanism: free, because they are averaged before the clip.

The gradient of one record is then that of its mean loss over K copies, each with a latent draw of its own. It is clipped
once, as without copies, so a record still moves the sum by at most C, and neither noise nor ε changes.

Reference: De, Berrada, Hayes, Smith, Balle 2022, "Unlocking High-Accuracy Differentially Private Image Classification
through Scale", section 3.2 ("augmentation multiplicity").
"""

from __future__ import annotations

from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from tf_dp2vae.configuration import Configuration
from tf_dp2vae.validation import check, check_whole, times


@keras.saving.register_keras_serializable("tf_dp2vae")
@dataclass(frozen=True)
class Shifts(Configuration):
    """Each copy is moved by whole pixels, up or down and left or right; zeros come in at the edge.

    Attributes:
      pixels: the largest shift along each axis.
    """

    pixels: int = 2

    def __post_init__(self) -> None:
        check_whole(pixels=self.pixels)

    def check_fits(self, image_shape: tuple[int, ...]) -> None:
        """Refuses shifts that could move an image, (height, width, channels), out of itself.

        Raises:
          InvalidInputError: naming the shift and the image.
        """
        smaller = min(image_shape[:2])
        check(
            self.pixels < smaller,
            f"shifts of up to {self.pixels} pixels move an image of {times(image_shape)} out of itself: "
            f"choose less than {smaller}.",
        )

    def offsets(self, random: np.random.Generator, examples: int, num: int) -> np.ndarray:
        """[examples, num, 2], int32: how many of the `pixels` zeros above and left of the image each copy leaves out.

        All of 0 … 2·pixels are as likely: 0 moves down and right by `pixels`, `pixels` moves nothing.
        """
        return random.integers(0, 2 * self.pixels + 1, (examples, num, 2), np.int32)

    def copies(self, images: tf.Tensor, offsets: tf.Tensor) -> tf.Tensor:
        """[examples, height, width, channels] → [examples, num, height, width, channels], for offsets [examples, num, 2]."""
        examples, height, width, channels = (int(size) for size in images.shape)
        num, margin = offsets.shape[1], [self.pixels, self.pixels]
        offsets = tf.reshape(offsets, [-1, 2])
        padded = tf.repeat(tf.pad(images, [[0, 0], margin, margin, [0, 0]]), num, axis=0)
        rows = tf.gather(padded, offsets[:, :1] + tf.range(height), axis=1, batch_dims=1)
        moved = tf.gather(rows, offsets[:, 1:] + tf.range(width), axis=2, batch_dims=1)
        return tf.reshape(moved, [examples, num, height, width, channels])
