"""Two kinds of randomness, never mixed.

*Public*: initialisation, dreams, sleep, samples. Seeded, reproducible, the seed stands in the statement.
*Private*: Poisson draws, latent draws and shifts inside a mechanism, noise. Keyed from the operating system, never stored.

All private draws come from AES-128 in counter mode (NIST SP 800-38A), so that whoever sees every answer and guesses every
record still cannot tell them from random without telling AES from random. Generators made for simulation, NumPy's own and
TensorFlow's, promise no such thing. So they are drawn on the host: a compiled private step draws nothing.

Noise is drawn in float64 and every noised answer is rounded to a coarse grid (`on_grid`), so that what floating-point
numbers do to the lowest bits of a Gaussian (Mironov 2012; Holohan and Braghin 2021) reaches nobody.
"""

from __future__ import annotations

import math
import os
from typing import Any, Protocol

import numpy as np
import tensorflow as tf
from randomgen import AESCounter

from tf_dp2vae.handover import aligned_zeros
from tf_dp2vae.validation import check_whole

GRID = 2.0**-4
"""The coarsest grid of an answer, as a part of its noise's deviation. It adds at most GRID²/12 = 0.03 % to the variance."""


class Entropy(Protocol):
    """Where private randomness comes from."""

    secure: bool

    def generator(self) -> np.random.Generator:
        """A NumPy generator under a fresh key."""
        ...

    def stream(self) -> Entropy:
        """Entropy for another thread, whose draws do not depend on when it makes them."""
        ...


class SystemEntropy:
    """Every key is drawn afresh from the operating system."""

    secure = True

    def generator(self) -> np.random.Generator:
        """AES in counter mode under a fresh 128-bit key."""
        return np.random.Generator(AESCounter(key=int.from_bytes(os.urandom(16), "little")))

    def stream(self) -> SystemEntropy:
        """The operating system serves every thread."""
        return self


class InsecureSeed:
    """Reproducible "private" randomness, for research, tests and audits. Whoever knows the seed can subtract the noise.

    The sequence begins anew in each process, so a run that was killed is not resumed with it.
    """

    secure = False

    def __init__(self, seed: int):
        """Args: a whole number of at least 0."""
        check_whole(minimum=0, insecure_seed=seed)
        self.seed = seed
        self._sequence = np.random.default_rng(seed)

    def generator(self) -> np.random.Generator:
        """The next generator of the seeded sequence."""
        return np.random.default_rng(int(self._sequence.integers(2**62)))

    def stream(self) -> InsecureSeed:
        """A sequence of its own, seeded by this one."""
        return InsecureSeed(int(self._sequence.integers(2**62)))


def standard_normals(random: np.random.Generator, *shape: int) -> np.ndarray:
    """N(0, 1) in float64, [*shape]: the noise of every mechanism, before it is scaled, and the draws of latents.

    NumPy's ziggurat takes 52 bits of magnitude for each draw and draws its tail from exponentials, so nothing ends where
    an answer of millions of numbers would show it. TensorFlow's own normal does not do: it floors its uniforms at 1e-7, in
    float64 too, so no pair of its draws lies farther out than 5.68 deviations, and one in ten million lies exactly there;
    whoever knows the neighbours would recognise such a pair far more often than δ allows. In float32 its values are also
    sparse enough to leak low-order bits of what they hide (Mironov 2012). NumPy lets go of the interpreter while it draws,
    so a thread that prepares the next step's noise holds nobody up.

    Reference: Marsaglia and Tsang 2000, "The Ziggurat Method for Generating Random Variables".
    """
    # What the generator gives back, so that one that ignored `out` would not leave zeros.
    return random.standard_normal(out=aligned_zeros(shape, np.float64))


def on_grid(noised: Any, stddev: float) -> Any:
    """The noised answer, rounded to multiples of the largest power of two that is at most `GRID`·stddev.

    The answer in exact arithmetic would be a fixed function of truth + N(0, stddev²), since rounding float64 addition is
    one too: post-processing. The noise that was really drawn lies, on average, within 2⁻⁵² deviations of exact noise,
    which shows after rounding only where a grid's boundary falls in between: for fewer than one number in 2⁴⁷. Multiples
    of a power of two also survive the rounding to float32 unchanged. Without the grid, the lowest bits of an answer can
    tell neighbours apart (Mironov 2012). Summing several draws (Holohan and Braghin 2021) makes that search harder; the
    grid takes away what is searched for, and costs no draw.

    Args:
      noised: truth plus noise, float64, an array or a tensor.
      stddev: the noise's standard deviation; 0 leaves the answer as it is.
    """
    if stddev == 0:
        return noised
    step = 2.0 ** math.floor(math.log2(GRID * stddev))
    # By powers of two, products are as exact as quotients; on a vector of all weights they take half the time.
    return (tf.math.rint if tf.is_tensor(noised) else np.rint)(noised * (1 / step)) * step
