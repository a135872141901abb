"""The noise's draws: their law, their tails, and what the key decides."""

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from tf_dp2vae.randomness import SystemEntropy, gaussian_noise, normal_from_bits

KEY = tf.constant([3, 14], tf.int64)


def draws(first, second):
    return normal_from_bits(tf.constant([[first], [second]], tf.uint64)).numpy()


def test_tail_reaches_as_far_as_the_bits_allow():
    """TensorFlow's own draw stops at 5.678 deviations, with mass on that circle."""
    assert draws(0, 0)[0] == pytest.approx(np.sqrt(-2 * np.log(2.0**-54)))
    assert draws(0, 0)[0] > 8.6
    assert abs(draws(2**64 - 1, 0)[0]) < 1e-7


def test_noise_has_that_tail_too(monkeypatch):
    monkeypatch.setattr(tf.random, "stateless_uniform", lambda shape, *_, **__: tf.zeros(shape, tf.uint64))
    assert gaussian_noise(KEY, [2], 10.0).numpy().max() > 86


@pytest.mark.parametrize("first, second", [(2**63, 2**62), (2**60 + 12345, 2**63 + 2**61), (7 << 11, 2**64 - 1)])
def test_pair_is_a_point_on_the_right_circle(first, second):
    uniform, turn = ((bits // 2**11 + 0.5) / 2**53 for bits in (first, second))
    radius = np.sqrt(-2 * np.log(uniform))
    expected = radius * np.cos(2 * np.pi * turn), radius * np.sin(2 * np.pi * turn)
    np.testing.assert_allclose(draws(first, second), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("jit", [False, True])
def test_noise_is_normal_of_the_right_deviation_for_odd_sizes_too(jit):
    noise = tf.function(lambda key: gaussian_noise(key, [3, 33_333], 2.5), jit_compile=jit)(KEY).numpy()
    assert noise.shape == (3, 33_333) and noise.dtype == np.float64
    assert stats.kstest(noise.ravel() / 2.5, "norm").pvalue > 1e-3
    # The two draws of a pair lie half an array apart.
    flat = noise.ravel()[: 2 * (noise.size // 2)].reshape(2, -1)
    assert abs(np.corrcoef(flat)[0, 1]) < 5 / np.sqrt(flat.shape[1])
    assert abs(np.corrcoef(flat**2)[0, 1]) < 5 / np.sqrt(flat.shape[1])


def test_equal_keys_give_equal_noise_and_fresh_ones_none_alike():
    np.testing.assert_array_equal(gaussian_noise(KEY, [10], 1.0), gaussian_noise(KEY, [10], 1.0))
    fresh = [gaussian_noise(tf.constant(SystemEntropy().key()), [5], 1.0).numpy() for _ in range(3)]
    assert len({value for part in fresh for value in part}) == 15


def test_a_scalar_gets_one_draw():
    assert gaussian_noise(KEY, [], 1.0).shape == ()
