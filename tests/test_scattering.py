"""Scattering features: against a plain loop, and the properties that they are wanted for."""

import cmath
import math

import numpy as np
import pytest
import tensorflow as tf

from tf_dp2vae.scattering import Scattering


def wavelet(side, deviation, frequency, angle):
    """By its definition, one entry at a time."""
    middle, envelope, wave = side // 2, {}, {}
    for row in range(side):
        for column in range(side):
            down, right = row - middle, column - middle
            across = right * math.cos(angle) + down * math.sin(angle)
            along = down * math.cos(angle) - right * math.sin(angle)
            envelope[row, column] = math.exp(-(across**2 + (along / 2) ** 2) / (2 * deviation**2))
            wave[row, column] = cmath.exp(1j * frequency * across)
    mean = sum(envelope[at] * wave[at] for at in wave) / sum(envelope.values())
    scale = 1 / (4 * math.pi * deviation**2)
    return {at: scale * envelope[at] * (wave[at] - mean) for at in wave}


def response(image, filters, row, column):
    """|image ⋆ wavelet| at one pixel; beyond the edge is black."""
    height, width = image.shape
    middle = int(math.sqrt(len(filters))) // 2
    total = 0
    for (down, right), value in filters.items():
        y, x = row + down - middle, column + right - middle
        if 0 <= y < height and 0 <= x < width:
            total += image[y, x] * value
    return math.sqrt(abs(total) ** 2 + 1e-6)


@pytest.mark.parametrize(
    "number, side, deviation, frequency", [(3, 7, 0.8, 0.75 * math.pi), (9, 11, 1.6, 0.375 * math.pi)]
)
def test_maps_are_windowed_moduli_of_wavelets(number, side, deviation, frequency):
    image = np.random.default_rng(0).random((8, 12))
    filters = wavelet(side, deviation, frequency, math.pi * (number % 8) / 8)
    modulus = np.array([[response(image, filters, row, column) for column in range(12)] for row in range(8)])
    rows, columns = (
        np.array(
            [[math.exp(-(((i - (4 * cell + 1.5)) / 4 / 0.4) ** 2) / 2) for cell in range(n // 4)] for i in range(n)]
        )
        for n in (8, 12)
    )
    expected = (rows / rows.sum(0)).T @ modulus @ (columns / columns.sum(0))
    found = Scattering((8, 12, 1))(tf.constant(image[None, ..., None], tf.float32)).numpy()
    np.testing.assert_allclose(found[0, :, 1 + number], expected.ravel(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "shape, cells, maps", [((28, 28, 1), 49, 17), ((32, 32, 3), 64, 19), ((64, 8, 1), 16, 17), ((6, 2, 2), 1, 18)]
)
def test_sizes(shape, cells, maps):
    scattering = Scattering(shape)
    assert (scattering.cells, scattering.maps) == (cells, maps)
    assert scattering(tf.zeros([2, *shape])).shape == (2, cells, maps)


def test_even_brightness_has_no_edges_inside():
    found = Scattering((44, 44, 1))(0.7 * tf.ones([1, 44, 44, 1])).numpy().reshape(8, 8, 17)[2:6, 2:6]
    np.testing.assert_allclose(found[..., 0], 0.7, rtol=1e-5)
    np.testing.assert_allclose(found[..., 1:], 1e-3, rtol=0.05)


def test_stripes_answer_to_the_wavelet_across_them():
    stripes = np.tile(np.cos(0.75 * np.pi * np.arange(32)) / 2 + 0.5, (32, 1)).astype(np.float32)
    for image, orientation in ((stripes, 0), (stripes.T, 4)):
        found = Scattering((32, 32, 1))(tf.constant(image[None, ..., None])).numpy().mean((0, 1))[1:9]
        assert np.argmax(found) == orientation and found[orientation] > 5 * found[(orientation + 4) % 8]


def test_gradient_of_a_black_image_is_finite():
    image = tf.Variable(tf.zeros([1, 8, 8, 1]))
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(Scattering((8, 8, 1))(image))
    assert np.isfinite(tape.gradient(total, image)).all()
