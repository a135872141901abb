"""Two kinds of randomness, never mixed.

*Public*: initialisation, dreams, sleep, samples. Seeded, reproducible, the seed stands in the statement.
*Private*: Poisson draws, latent draws inside a mechanism, noise. Keyed from the operating system, never stored.
"""

from __future__ import annotations

import math
import os
from typing import Protocol

import numpy as np
import tensorflow as tf


class Entropy(Protocol):
    """Where private randomness comes from."""

    secure: bool

    def generator(self) -> np.random.Generator:
        """A NumPy generator under a fresh key, for draws on the host."""
        ...

    def key(self) -> np.ndarray:
        """A fresh key for `tf.random.stateless_*`: int64 [2]."""
        ...


class SystemEntropy:
    """Every key is drawn afresh from the operating system."""

    secure = True

    def generator(self) -> np.random.Generator:
        """A Philox generator under a fresh 128-bit key."""
        return np.random.Generator(np.random.Philox(key=int.from_bytes(os.urandom(16), "little")))

    def key(self) -> np.ndarray:
        """128 fresh bits."""
        return np.frombuffer(os.urandom(16), dtype=np.int64)


class InsecureSeed:
    """Reproducible "private" randomness, for tests and audits. Whoever knows the seed can subtract the noise."""

    secure = False

    def __init__(self, seed: int):
        self._sequence = np.random.default_rng(seed)

    def generator(self) -> np.random.Generator:
        """The next generator of the seeded sequence."""
        return np.random.default_rng(int(self._sequence.integers(2**62)))

    def key(self) -> np.ndarray:
        """The next key of the seeded sequence."""
        return self._sequence.integers(2**62, size=2)


def fold(key: tf.Tensor, *tags: int | tf.Tensor) -> tf.Tensor:
    """A key of its own for each list of tags: int64 [2], all 128 bits of it from the key.

    TensorFlow's `stateless_fold_in` keeps 32 bits of the key for an int32 tag and 64 for an int64 one: few enough to be
    searched by whoever wants to subtract the noise.
    """
    for tag in tags:
        tagged = tf.stack([key[0], tf.bitwise.bitwise_xor(key[1], tf.cast(tag, tf.int64))])
        key = tf.random.stateless_uniform([2], tagged, minval=None, maxval=None, dtype=tf.int64)
    return key


def gaussian_noise(key: tf.Tensor, shape: tf.TensorShape | list[int], stddev: float | tf.Tensor) -> tf.Tensor:
    """N(0, stddev²) in float64, [*shape], from 106 bits a pair of draws.

    Not `tf.random.stateless_normal`: it floors its uniforms at 1e-7, in float64 too. No pair of its draws lies farther out
    than 5.68 deviations, and one in ten million lies exactly there; whoever knows the neighbours would recognise such a
    pair in an answer of millions of numbers far more often than δ allows. In float32 its values are also sparse enough to
    leak low-order bits of what they hide (Mironov 2012).
    """
    shape = tf.TensorShape(shape)
    size = shape.num_elements()
    bits = tf.random.stateless_uniform([2, -(-size // 2)], key, minval=None, maxval=None, dtype=tf.uint64)
    return tf.reshape(normal_from_bits(bits)[:size], shape) * tf.cast(stddev, tf.float64)


def normal_from_bits(bits: tf.Tensor) -> tf.Tensor:
    """Standard normals [2·pairs] in float64 from uniform uint64 bits [2, pairs].

    The uniforms are odd multiples of 2⁻⁵⁴, so the farthest draw is at 8.65 deviations, which has probability 2⁻⁵³.

    Reference: Box and Muller 1958, "A Note on the Generation of Random Normal Deviates".
    """
    uniform = (tf.cast(tf.bitwise.right_shift(bits, tf.constant(11, tf.uint64)), tf.float64) + 0.5) * 2.0**-53
    radius, angle = tf.sqrt(-2.0 * tf.math.log(uniform[0])), 2.0 * math.pi * uniform[1]
    return tf.concat([radius * tf.cos(angle), radius * tf.sin(angle)], 0)
