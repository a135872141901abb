"""Membership inference on the release: does it reconstruct training records better than others?

The attacker has what everybody has, decoder and prior. It samples many images of the record's label and takes as
reconstruction loss the least −log p(x|z, y) over them, and as marginal loss −log of their mean likelihood. Two attacks:

  threshold          members are the records with the smallest reconstruction loss.
  likelihood ratio   the attacker also knows some members and some others, and how hard a record is: its loss under real
                     images of the same kind that training never saw. Gaussian densities of these numbers for members and
                     for others give the ratio (Neyman and Pearson 1933).

Both are measured on records that the attacker knows nothing about. Chance is an area of 0.5. Training and test sets are
rarely alike to the last (MNIST's have different writers), and no release is needed to tell them apart by that. A control
shows how far that goes: the likelihood ratio without the release, on difficulty alone. Only what exceeds it is leaked.

Densities and rates are by scikit-learn and SciPy: of tensorflow-privacy's own attacks the wheel 0.9.0 holds only lines that
import them from `privacy.privacy_tests`, which it leaves out.

References: Chen, Yu, Zhang, Fritz 2020 (GAN-Leaks); Hilprecht, Härterich, Bernau 2019 (Monte-Carlo attacks); Watson, Guo,
Cormode, Sablayrolles 2022 (difficulty); Carlini et al. 2022 (report the true positives at small false-positive rates).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.special import logsumexp
from scipy.stats import binomtest
from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis
from sklearn.metrics import roc_auc_score

from tf_dp2vae.evaluation.real import Labelled, RealImages
from tf_dp2vae.evaluation.report import Part
from tf_dp2vae.records import FULL_SCALE
from tf_dp2vae.validation import check

LIKELIHOOD_RATIO, CONTROL = "likelihood ratio", "control without the release"

_FEWEST = 20
_FALSE_POSITIVE_RATES = (0.001, 0.01)
_MOST_RECORDS = 5_000
_RESAMPLES = 200
_CONFIDENCE = 0.95
_DARKEST = 1e-4
_ROWS = 500


@dataclass(frozen=True)
class AttackResult:
    """How well members were told from others; each interval covers 95 %.

    Attributes:
      auc: area under the receiver's curve.
      auc_interval: by bootstrap over records.
      true_positive_rates: at the false-positive rates 0.1 % and 1 %.
      true_positive_intervals: Clopper and Pearson's, the threshold taken as given.
    """

    auc: float
    auc_interval: tuple[float, float]
    true_positive_rates: tuple[float, ...]
    true_positive_intervals: tuple[tuple[float, float], ...]


def membership(synthetic: Labelled, real: RealImages, seed: int) -> Part:
    """Both attacks, on as many records as there are others; arguments and refusals are those of `attack_scores`."""
    scores = attack_scores(synthetic, real, seed)
    results = {name: _measured(*pair, seed) for name, pair in scores.items()}
    return _part(results, len(scores[CONTROL][0]), len(synthetic[0]))


def impossible(real: RealImages) -> str:
    """Why membership cannot be inferred from these images; empty where it can."""
    if real.test is None:
        return real.without_test
    size = min(len(real.train[0]), _num_outside(real.test))
    needed = f"membership inference needs {_FEWEST}, and takes three fifths of the test images"
    return "" if size >= _FEWEST else f"{size} records against {size} others are too few: {needed}"


def attack_scores(synthetic: Labelled, real: RealImages, seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Scores of members and of as many others, for each attack; larger where the attack says member.

    Args:
      synthetic: samples of the release, by label.
      real: records and test images; two fifths of the latter tell how hard a record is, the rest are the others.
      seed: of the choice of records.

    Raises:
      InvalidInputError: it is `impossible`.
    """
    check(not impossible(real), f"{impossible(real)}.")
    assert real.test is not None
    random = np.random.default_rng(seed)
    order = random.permutation(len(real.test[0]))
    held = order[: len(order) - _num_outside(real.test)]
    outside = order[len(held) :][:_MOST_RECORDS]
    inside = random.permutation(len(real.train[0]))[: len(outside)]
    size = min(len(inside), len(outside))
    difficulty = (real.test[0][held], real.test[1][held])
    losses = [
        _scores(part[0][rows[:size]], part[1][rows[:size]], synthetic, difficulty)
        for part, rows in ((real.train, inside), (real.test, outside))
    ]
    members, others = losses
    return {
        "threshold": (-members[size // 2 :, 0], -others[size // 2 :, 0]),
        LIKELIHOOD_RATIO: _likelihood_ratios(members, others),
        CONTROL: _likelihood_ratios(members[:, 2:], others[:, 2:]),
    }


def reconstruction_losses(images: np.ndarray, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reconstruction loss and marginal loss of images under samples, in nats.

    Args:
      images: [n, pixels] in [0, 1].
      samples: [m, pixels], means of a Bernoulli for each pixel.

    Returns:
      min over samples of −log p(x|z), [n]; −log of the mean over samples of p(x|z), [n].
    """
    clipped = np.clip(samples, _DARKEST, 1 - _DARKEST).astype(np.float64)
    bright, dark = np.log(clipped), np.log1p(-clipped)
    nearest, marginal = [], []
    for start in range(0, len(images), _ROWS):
        part = images[start : start + _ROWS].astype(np.float64)
        likelihoods = part @ (bright - dark).T + dark.sum(1)
        nearest.append(-likelihoods.max(1))
        marginal.append(np.log(len(samples)) - logsumexp(likelihoods, axis=1))
    return np.concatenate(nearest), np.concatenate(marginal)


def _scores(images: np.ndarray, labels: np.ndarray, synthetic: Labelled, difficulty: Labelled) -> np.ndarray:
    """Reconstruction loss, marginal loss and difficulty of each image, [n, 3]."""
    found = np.zeros((len(images), 3))
    flat = _flat(images)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        sampled = _flat(of_label(synthetic, label))
        found[rows, :2] = np.stack(reconstruction_losses(flat[rows], sampled), 1)
        found[rows, 2] = reconstruction_losses(flat[rows], _flat(of_label(difficulty, label)))[0]
    return found


def _num_outside(test: Labelled) -> int:
    """How many test images stand against records; the others tell how hard a record is."""
    return len(test[0]) - 2 * len(test[0]) // 5


def of_label(images: Labelled, label: int) -> np.ndarray:
    """Those of the label; all, where there are none."""
    chosen = images[0][images[1] == label]
    return chosen if len(chosen) else images[0]


def _flat(images: np.ndarray) -> np.ndarray:
    flat = images.reshape(len(images), -1)
    return flat / FULL_SCALE if flat.dtype == np.uint8 else flat


def _likelihood_ratios(members: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log of p(scores|member)/p(scores|other) for the second halves, its densities fitted on the first."""
    half = len(members) // 2
    known = np.concatenate([members[:half], others[:half]])
    model = QuadraticDiscriminantAnalysis(priors=[0.5, 0.5], reg_param=1e-4)
    model.fit(known, np.repeat([1, 0], half))
    return model.decision_function(members[half:]), model.decision_function(others[half:])


def _measured(members: np.ndarray, others: np.ndarray, seed: int) -> AttackResult:
    """Rates of an attack whose score is larger for members."""
    random = np.random.default_rng(seed)
    truth, scores = np.repeat([1, 0], [len(members), len(others)]), np.concatenate([members, others])
    areas = [
        roc_auc_score(truth, np.concatenate([random.choice(members, len(members)), random.choice(others, len(others))]))
        for _ in range(_RESAMPLES)
    ]
    low, high = np.quantile(areas, [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2])
    tests = []
    for rate in _FALSE_POSITIVE_RATES:
        # The smallest threshold that at most this share of the others exceeds.
        allowed = int(rate * len(others))
        threshold = np.sort(others)[len(others) - allowed - 1]
        tests.append(binomtest(int((members > threshold).sum()), len(members)))
    intervals = [test.proportion_ci(_CONFIDENCE, method="exact") for test in tests]
    return AttackResult(
        float(roc_auc_score(truth, scores)),
        (float(low), float(high)),
        tuple(float(test.statistic) for test in tests),
        tuple((float(interval.low), float(interval.high)) for interval in intervals),
    )


def _part(results: dict[str, AttackResult], size: int, samples: int) -> Part:
    rows, values = [], dict[str, Any]()
    for name, result in results.items():
        low, high = result.auc_interval
        rows.append((f"{name}, area under the curve", f"{result.auc:.3f} (95 %: {low:.3f} to {high:.3f}; chance 0.5)"))
        for rate, found, (low, high) in zip(
            _FALSE_POSITIVE_RATES, result.true_positive_rates, result.true_positive_intervals
        ):
            words = f"{found:.2%} (95 %: {low:.2%} to {high:.2%}; chance {rate:.1%})"
            rows.append((f"{name}, true positives at {rate:.1%} false ones", words))
        values[name.replace(" ", "_")] = asdict(result)
    title = f"Membership inference: {size:,} records against {size:,} others, loss under {samples:,} samples"
    return Part(title, rows, {"membership": {**values, "records": size, "others": size, "samples": samples}})
