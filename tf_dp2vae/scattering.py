"""Features of an image that nobody has to learn: a scattering transform of first order.

An image is convolved with oriented wavelets of two widths; their moduli, and the image itself, are averaged over a coarse
grid of cells. What comes out tells edges and texture apart where pixels do not, moves little when strokes do, and is linear
enough for a linear classifier. All filters are constants, so the features of a record are a function of that record alone.

Reference: Bruna and Mallat 2013, "Invariant Scattering Convolution Networks"; that such features serve private learning
better than learned ones: Tramèr and Boneh 2021, "Differentially Private Learning Needs Better Features (or Much More Data)".
"""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf

_ORIENTATIONS = 8
_WAVELETS = ((7, 0.8, 0.75 * math.pi), (11, 1.6, 0.375 * math.pi))
"""Side of the filter, deviation of its envelope and frequency, for each width; pixels and radians a pixel."""
_SLANT = 0.5
"""How much longer the envelope is along an edge than across it, inverted."""
_MOST_CELLS = 8
_BLUR = 0.4
"""Deviation of a cell's Gaussian window, in cells."""
_FLOOR = 1e-6
"""Under the root of the modulus, whose gradient at 0 would be infinite."""
_BRIGHTNESS_OF_COLOURS = (0.299, 0.587, 0.114)


class Scattering:
    """Features [n, cells, maps] of images [n, height, width, channels] in [0, 1].

    Attributes:
      cells: of the grid, a quarter of the side along each axis, at most 8.
      maps: the channels, and one for each wavelet, which sees brightness only.
    """

    def __init__(self, image_shape: tuple[int, int, int]):
        """Args: (height, width, channels)."""
        height, width, channels = image_shape
        rows, columns = (_windows(side) for side in (height, width))
        self._rows, self._columns = tf.constant(rows), tf.constant(columns)
        grey = _BRIGHTNESS_OF_COLOURS if channels == 3 else np.full(channels, 1 / channels)
        self._grey = tf.constant(grey, tf.float32)
        self._filters = [tf.constant(_wavelets(*wavelet)) for wavelet in _WAVELETS]
        self.cells = rows.shape[1] * columns.shape[1]
        self.maps = channels + _ORIENTATIONS * len(_WAVELETS)

    def __call__(self, images: tf.Tensor) -> tf.Tensor:
        grey = tf.tensordot(images, self._grey, 1)[..., None]
        maps = tf.concat([images, *(_modulus(tf.nn.conv2d(grey, each, 1, "SAME")) for each in self._filters)], -1)
        pooled = tf.einsum("nhwc,hi,wj->nijc", maps, self._rows, self._columns)
        return tf.reshape(pooled, [-1, self.cells, self.maps])


def _windows(side: int) -> np.ndarray:
    """Gaussian windows along one axis, [side, cells], each of sum 1."""
    cells = min(max(side // 4, 1), _MOST_CELLS)
    centres = (np.arange(cells) + 0.5) * side / cells - 0.5
    weights = np.exp(-np.square((np.arange(side)[:, None] - centres) * cells / side / _BLUR) / 2)
    return (weights / weights.sum(0)).astype(np.float32)


def _wavelets(side: int, deviation: float, frequency: float) -> np.ndarray:
    """Morlet wavelets, [side, side, 1, 2·orientations]: real parts, then imaginary ones; each of sum 0."""
    offsets = np.arange(side) - side // 2
    down, right = np.meshgrid(offsets, offsets, indexing="ij")
    waves = []
    for angle in math.pi * np.arange(_ORIENTATIONS) / _ORIENTATIONS:
        across = right * math.cos(angle) + down * math.sin(angle)
        along = down * math.cos(angle) - right * math.sin(angle)
        envelope = np.exp(-(np.square(across) + np.square(_SLANT * along)) / (2 * deviation**2))
        wave = np.exp(1j * frequency * across)
        wave = envelope * (wave - (envelope * wave).sum() / envelope.sum())
        waves.append(wave * _SLANT / (2 * math.pi * deviation**2))
    filters = np.stack([*np.real(waves), *np.imag(waves)], -1)
    return filters[:, :, None].astype(np.float32)


def _modulus(complex_maps: tf.Tensor) -> tf.Tensor:
    real, imaginary = tf.split(tf.square(complex_maps), 2, axis=-1)
    return tf.sqrt(real + imaginary + _FLOOR)
