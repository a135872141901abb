"""From what an attack guessed to a lower bound on ε, with confidence: many releases, two neighbouring data sets.

`one_run` has the bound for many records and one release.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy.stats import beta

from tf_dp2vae.validation import check, check_between

_TAIL = 0.025


def epsilon_lower_bound(
    true_positives: Any, positives: int, false_positives: Any, negatives: int, delta: float
) -> np.ndarray:
    """ln((TPR_low − δ)/FPR_high), at least 0: an ε below which such counts are a 1-in-20 accident.

    The threshold must have been fixed on releases other than those counted.

    Args:
      true_positives: releases from D that the attack called D; a count, or an array of counts.
      positives: releases from D.
      false_positives: releases from D′ that the attack called D; as `true_positives`.
      negatives: releases from D′.
      delta: δ of the claim that is tested.

    Returns:
      The bound, of the counts' shape. Each rate is Clopper and Pearson's one-sided limit at 97.5 %.

    Raises:
      InvalidInputError: counts outside 0 to their totals, or δ outside (0, 1).

    Reference: Clopper and Pearson 1934; Jagielski, Ullman, Oprea 2020, "Auditing differentially private machine learning".
    """
    hits, alarms = np.asarray(true_positives), np.asarray(false_positives)
    check_between(0, 1, delta=delta)
    for name, counts, total in (("true_positives", hits, positives), ("false_positives", alarms, negatives)):
        inside = total > 0 and bool(np.all((counts >= 0) & (counts <= total)))
        check(inside, f"{name} must lie in 0 to {total} (and some releases are needed): {counts}.")
    # At the ends one parameter of the beta distribution is 0: the limits there are 0 and 1.
    low = np.where(hits > 0, beta.ppf(_TAIL, np.maximum(hits, 1), positives - hits + 1), 0.0)
    high = np.where(alarms < negatives, beta.ppf(1 - _TAIL, alarms + 1, np.maximum(negatives - alarms, 1)), 1.0)
    return np.log(np.maximum((low - delta) / high, 1.0))


def best_threshold(scores_in: np.ndarray, scores_out: np.ndarray, delta: float) -> float:
    """The threshold above which to call a release D: the one with the largest bound on these calibration scores.

    Args:
      scores_in: scores of releases from D, [n].
      scores_out: scores of releases from D′, [m].
      delta: δ of the claim.

    Returns:
      A value halfway between two neighbouring scores; among equal bounds, the one that tells most releases apart.
    """
    scores_in, scores_out = np.sort(scores_in), np.sort(scores_out)
    pooled = np.unique(np.concatenate([scores_in, scores_out]))
    candidates = (pooled[1:] + pooled[:-1]) / 2 if len(pooled) > 1 else pooled
    hits = len(scores_in) - np.searchsorted(scores_in, candidates, side="right")
    alarms = len(scores_out) - np.searchsorted(scores_out, candidates, side="right")
    bounds = epsilon_lower_bound(hits, len(scores_in), alarms, len(scores_out), delta)
    advantage = hits / len(scores_in) - alarms / len(scores_out)
    return float(candidates[np.lexsort([advantage, bounds])[-1]])


class Verdict(NamedTuple):
    """What an attack achieved on releases that its threshold never saw.

    Attributes:
      lower_bound: on ε.
      true_positives, false_positives: releases from D, and from D′, that were called D.
      threshold: scores above it are called D.
    """

    lower_bound: float
    true_positives: int
    false_positives: int
    threshold: float


def verdict_of(scores_in: np.ndarray, scores_out: np.ndarray, num_calibration: int, delta: float) -> Verdict:
    """Fixes the threshold on the first `num_calibration` scores of each side and counts on the others.

    Args:
      scores_in: scores of releases from D, [n].
      scores_out: scores of releases from D′, [m].
      num_calibration: how many of each side set the threshold; fewer than n and m.
      delta: δ of the claim.
    """
    threshold = best_threshold(scores_in[:num_calibration], scores_out[:num_calibration], delta)
    evaluated_in, evaluated_out = scores_in[num_calibration:], scores_out[num_calibration:]
    hits, alarms = int(np.sum(evaluated_in > threshold)), int(np.sum(evaluated_out > threshold))
    bound = epsilon_lower_bound(hits, len(evaluated_in), alarms, len(evaluated_out), delta)
    return Verdict(float(bound), hits, alarms, threshold)
