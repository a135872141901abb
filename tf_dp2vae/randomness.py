"""Two kinds of randomness, never mixed.

*Public*: initialisation, dreams, sleep, samples. Seeded, reproducible, the seed stands in the statement.
*Private*: Poisson draws, latent draws inside a mechanism, noise. Keyed from the operating system, never stored.
"""

from __future__ import annotations

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


def standard_normals(random: np.random.Generator, *shape: int) -> np.ndarray:
    """N(0, 1) in float64, [*shape]: the noise of every mechanism, before it is scaled.

    NumPy's ziggurat takes 52 bits of magnitude for each draw and draws its tail from exponentials, so nothing ends where
    an answer of millions of numbers would show it. TensorFlow's own normal does not do: it floors its uniforms at 1e-7, in
    float64 too, so no pair of its draws lies farther out than 5.68 deviations, and one in ten million lies exactly there;
    whoever knows the neighbours would recognise such a pair far more often than δ allows. In float32 its values are also
    sparse enough to leak low-order bits of what they hide (Mironov 2012). NumPy lets go of the interpreter while it draws,
    so a thread that prepares the next step's noise holds nobody up.

    Reference: Marsaglia and Tsang 2000, "The Ziggurat Method for Generating Random Variables".
    """
    return random.standard_normal(shape)
