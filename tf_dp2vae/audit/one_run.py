"""The one-run audit: many canaries, each included by a fair coin, one run, and a guess at every coin or at some of them.

If the run is (ε, δ)-differentially private with respect to each canary, then every guess is right with probability at most
e^ε/(1 + e^ε) whatever the other coins, as if it came from randomised response, up to a failure whose expected number over
all m canaries is at most 2mδ. So among r guesses the number of right ones stays below Binomial(r, e^ε/(1 + e^ε)) plus
those failures. An ε that makes the observed number too unlikely is refuted.

Which coins are guessed may depend on the scores, and not on the coins. A canary left out is a null record, so the ε here
is that of the package's own claim.

Reference: Steinke, Nasr, Jagielski 2023, "Privacy Auditing with One (1) Training Run", theorem 5.2.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.special import expit
from scipy.stats import binom

from tf_dp2vae.validation import check, check_between

CONFIDENCE = 0.95
_SHARES = (0.01, 0.1, 1.0)
_LARGEST, _PRECISION, _CERTAIN = 64.0, 1e-4, 1 - 1e-12


def p_value(epsilon: float, delta: float, canaries: int, guesses: int, right: int) -> float:
    """The largest probability that an (ε, δ)-private run lets at least that many guesses be right.

    With W ~ Binomial(r, e^ε/(1 + e^ε)): P[W ≥ v] + 2mδ · max over i in 1 … v of P[v − i ≤ W < v]/i.

    Args:
      epsilon, delta: of the claim.
      canaries: m, all that a coin was thrown for.
      guesses: r, those whose coin was guessed.
      right: v, those guessed rightly.

    Raises:
      InvalidInputError: unless 0 ≤ v ≤ r ≤ m and 1 ≤ m, or δ lies outside [0, 1).
    """
    check(
        canaries >= 1 and 0 <= right <= guesses <= canaries,
        f"right={right}, guesses={guesses}, canaries={canaries}: each must be at most the next, and canaries at least 1.",
    )
    check(0 <= delta < 1, f"delta={delta!r} must lie in [0, 1).")
    chance = expit(epsilon)
    at_least = float(binom.sf(right - 1, guesses, chance))
    if right == 0 or delta == 0:
        return at_least
    # Failures lift a count just below v over it; i of them are needed from v − i on, and each is one of 2mδ.
    just_below = np.cumsum(binom.pmf(np.arange(right - 1, -1, -1), guesses, chance))
    lift = float(np.max(just_below / np.arange(1, right + 1)))
    return min(at_least + 2 * canaries * delta * lift, 1.0)


def one_run_lower_bound(
    canaries: int, guesses: int, right: int, delta: float, confidence: float = CONFIDENCE, paired: bool = False
) -> float:
    """The smallest ε that so many right guesses do not refute; 0 where they refute nothing.

    How many guesses were made must not depend on how many were right.

    Args:
      canaries, guesses, right: as for `p_value`.
      delta: δ of the claim.
      confidence: the probability with which the bound lies below the true ε.
      paired: whether a coin chose which of two records was in, instead of whether one was. The guesses then bear upon
        what ε says of replacement, (2ε, (1 + e^ε)·δ).
    """
    check_between(0, 1, confidence=confidence)

    def refuted(epsilon: float) -> bool:
        tested = (2 * epsilon, min((1 + math.exp(epsilon)) * delta, _CERTAIN)) if paired else (epsilon, delta)
        return p_value(*tested, canaries, guesses, right) <= 1 - confidence

    low, high = 0.0, _LARGEST
    if not refuted(low):
        return 0.0
    while high - low > _PRECISION:
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


class OneRunVerdict(NamedTuple):
    """What the attacker's guesses prove.

    Attributes:
      lower_bound: on ε.
      canaries: all, of which about half were included.
      guesses: how many coins were guessed.
      right: how many of them rightly.
    """

    lower_bound: float
    canaries: int
    guesses: int
    right: int


def one_run_verdict(
    scores: np.ndarray,
    included: np.ndarray,
    delta: float,
    confidence: float = CONFIDENCE,
    shares: tuple[float, ...] = _SHARES,
    paired: bool = False,
) -> OneRunVerdict:
    """Guesses the coins of the canaries with the largest |score|: included where it is positive, left out where negative.

    Each share of `shares` is one attempt; the best counts, at a confidence that all of them together keep (Bonferroni).

    Args:
      scores: of each canary, [m]; a log likelihood ratio, or anything that is larger for canaries that were included and
        that was centred without a look at the coins.
      included: the coins, [m], booleans.
      delta: δ of the claim.
      confidence: the probability with which the bound lies below the true ε.
      shares: parts of the canaries that are guessed, each in (0, 1].
      paired: as for `one_run_lower_bound`.
    """
    strongest = np.argsort(-np.abs(scores), kind="stable")
    right = ((scores > 0) == np.asarray(included, bool))[strongest]
    each = 1 - (1 - confidence) / len(shares)
    verdicts = []
    for share in shares:
        guesses = max(1, round(share * len(scores)))
        count = int(right[:guesses].sum())
        bound = one_run_lower_bound(len(scores), guesses, count, delta, each, paired)
        verdicts.append(OneRunVerdict(bound, len(scores), guesses, count))
    return max(verdicts)
