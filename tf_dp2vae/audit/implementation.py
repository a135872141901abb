"""White-box tests of what the accountant takes on trust: that the code clips, noises, samples and divides as it says.

A bound from guesses sees a break only where it makes ε exceed the claim by more than statistics blur. These tests look at
one constant each, with the randomness laid open, and see far smaller breaks:

| test                  | a sound mechanism                                                                          |
|-----------------------|--------------------------------------------------------------------------------------------|
| `noise`               | answer less the same answer without noise, over σC, is standard normal (χ², both sides)     |
| `sensitivity`         | a record whose gradient exceeds every clip moves the un-noised sum by at most C             |
| `division`            | records with a zero gradient change nothing, however many of them are drawn                 |
| `draws`               | how often each record is drawn is binomial, and differs as much as chance has it (χ²)       |
| `batch_sizes`         | so is how many are drawn at a time                                                         |
| `statistics_noise`    | class statistics less the same without noise, over what σ means, are standard normal        |
| `moments_noise`       | the same for latent moments                                                                 |
| `features_noise`      | the same for sums of features                                                               |
| `release_sensitivity` | nulling a record beyond every bound moves each of the three by at most what σ is counted in |

Each gives a p-value; the tests without chance give 0 or 1.
"""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np
from scipy.stats import chi2

from tf_dp2vae.accounting import CLASS_STATISTICS, FEATURE_MEANS, LATENT_MOMENTS, Event
from tf_dp2vae.audit.dirac import SOUND, TABLES, DiracStep, Parts, numbered, numbers_of
from tf_dp2vae.dreams import frequency_basis
from tf_dp2vae.ledger import Ledger
from tf_dp2vae.mechanisms import Mechanisms
from tf_dp2vae.moments import Moments
from tf_dp2vae.randomness import SystemEntropy
from tf_dp2vae.records import FULL_SCALE, Records
from tf_dp2vae.sampling import PoissonBatch, PoissonSource

ALARM = 1e-6
"""p-values below it are alarms: of a sound mechanism, one in a million tests."""
TESTS = (
    *("noise", "sensitivity", "division", "draws", "batch_sizes"),
    *("statistics_noise", "moments_noise", "features_noise", "release_sensitivity"),
)

_SIGMA, _SIZE, _DRAWN, _SPACE = 3.0, 2000, 8, 16
_RECORDS, _DRAWS, _RATE = 200, 200, 0.25
_SHAPE, _CLASSES, _BOUND, _WEIGHTS = (8, 8, 1), 2, 3.0, (0.25, 1.0, 1.0)
_ROUNDING = 1e-4
_HARDLY_ANY = 1e-9


class ImplementationTests:
    """The tests of one set of parts; networks are built once, randomness is fresh in every call."""

    def __init__(self, parts: Parts = SOUND):
        self._parts, self._entropy = parts, SystemEntropy()

    def p_values(self) -> dict[str, float]:
        """Of every test, once."""
        return {name: getattr(self, name)() for name in TESTS}

    @cached_property
    def _noised(self) -> DiracStep:
        return DiracStep(_SIZE, _SIGMA, _DRAWN, self._parts)

    @cached_property
    def _silent(self) -> DiracStep:
        return DiracStep(_SIZE, 0.0, _DRAWN, self._parts)

    def _batch(self, pulling: int, idle: int = 0) -> PoissonBatch:
        """Records 0, 1, … of which the last few have no gradient, with fresh noise."""
        numbers = np.arange(pulling + idle)
        records = numbered(numbers, numbers < pulling)
        return PoissonSource(records, 1.0, _SPACE, self._entropy, TABLES * _SIZE).batch()

    def noise(self) -> float:
        """The batch drawn is of the expected size, so that a wrong division is not mistaken for noise."""
        batch = self._batch(_DRAWN)
        return _two_sided((self._noised.answer(batch) - self._silent.answer(batch)) / _SIGMA)

    def sensitivity(self) -> float:
        """The target's gradient has norm 10 over four tables."""
        # An idle record takes the target's place: what the number drawn does is for `division` to see.
        moved = self._silent.answer(self._batch(_DRAWN)) - self._silent.answer(self._batch(_DRAWN - 1, idle=1))
        return float(np.linalg.norm(moved) <= 1 + _ROUNDING)

    def division(self) -> float:
        """The same noise for both."""
        batch = self._batch(_DRAWN // 2)
        fuller = self._batch(_DRAWN // 2, idle=_DRAWN)._replace(noise=batch.noise)
        answers = [self._noised.answer(b) for b in (batch, fuller)]
        return float(np.allclose(*answers, rtol=_ROUNDING, atol=_ROUNDING))

    def draws(self) -> float:
        """Over 200 batches of 200 records at q = 1/4."""
        return _two_sided((self._drawn().sum(0) - _DRAWS * _RATE) / math.sqrt(_DRAWS * _RATE * (1 - _RATE)))

    def batch_sizes(self) -> float:
        """Over as many other batches."""
        return _two_sided((self._drawn().sum(1) - _RECORDS * _RATE) / math.sqrt(_RECORDS * _RATE * (1 - _RATE)))

    def _drawn(self) -> np.ndarray:
        """Which records are in which batch, [batches, records]; read from the batches, not from the draw itself."""
        records = numbered(np.arange(_RECORDS), np.ones(_RECORDS, bool))
        source = self._parts.source(records, _RATE, _RECORDS, self._entropy, 1)
        member = np.zeros((_DRAWS, _RECORDS))
        for row in member:
            batch = source.batch()
            row[numbers_of(np.asarray(batch.images)[np.asarray(batch.mask) > 0])] = 1
        return member

    def statistics_noise(self) -> float:
        """Counts, sums, and the diagonal of the second moment."""
        return self._release_noise(CLASS_STATISTICS)

    def moments_noise(self) -> float:
        """Counts, sums, and the diagonals of the second moments."""
        return self._release_noise(LATENT_MOMENTS)

    def features_noise(self) -> float:
        """Sums."""
        return self._release_noise(FEATURE_MEANS)

    def release_sensitivity(self) -> float:
        """The target is white, which is beyond every bound."""
        images = self._entropy.generator().integers(0, 256, (20, *_SHAPE), dtype=np.uint8)
        images[0] = FULL_SCALE
        moved = [self._moved(name, images) for name in _RELEASES]
        return float(max(moved) <= 1 + _ROUNDING)

    def _moved(self, name: str, images: np.ndarray) -> float:
        """How far nulling the first record moves an answer, in the unit that σ counts in."""
        answers = []
        for nulled in (0, 1):
            labels = (np.arange(len(images)) % _CLASSES).astype(np.int32)
            rest = Records(images[nulled:], labels[nulled:], _CLASSES)
            answers.append(_released(self._parts.mechanisms(Ledger(), self._entropy), name, rest, _HARDLY_ANY))
        # A symmetric matrix's entries have the norm of those that are noised: each stands twice, under a √2 less noise.
        parts = [(a - b).ravel() / unit for a, b, unit in zip(*map(_arrays, answers), _units(name)) if unit < math.inf]
        return float(np.linalg.norm(np.concatenate(parts)))

    def _release_noise(self, name: str) -> float:
        images = self._entropy.generator().integers(0, 256, (20, *_SHAPE), dtype=np.uint8)
        records = Records(images, (np.arange(20) % _CLASSES).astype(np.int32), _CLASSES)
        mechanisms = self._parts.mechanisms(Ledger(), self._entropy)
        answer, silent = (_released(mechanisms, name, records, sigma) for sigma in (_SIGMA, _HARDLY_ANY))
        # From the event and the constants alone: what the answer says of its own noise may be what is broken.
        pairs = zip(_arrays(answer), _arrays(silent), _units(name))
        entries = [(_diagonals(a) - _diagonals(b)) / (_SIGMA * unit) for a, b, unit in pairs if unit < math.inf]
        return _two_sided(np.concatenate([part.ravel() for part in entries]))


_RELEASES = (CLASS_STATISTICS, LATENT_MOMENTS, FEATURE_MEANS)


def _released(mechanisms: Mechanisms, name: str, records: Records, sigma: float) -> Moments:
    """One of the three one-time answers, charged and noised with σ."""
    event = Event(name, sigma)
    if name == FEATURE_MEANS:
        return mechanisms.feature_means(records, event, lambda images: _BOUND * images.reshape(len(images), -1))
    if name == LATENT_MOMENTS:
        return mechanisms.latent_moments(records, event, _pixels, _BOUND, _WEIGHTS, shared_second=False)
    return mechanisms.class_statistics(records, event, frequency_basis(_SHAPE, 4), _BOUND, _WEIGHTS)


def _units(name: str) -> tuple[float, float, float]:
    """What one σ is for counts, sums and second moments; infinite for what is not answered."""
    if name == FEATURE_MEANS:
        return math.inf, 1.0, math.inf
    counts, sums, seconds = (math.hypot(*_WEIGHTS) / weight for weight in _WEIGHTS)
    return counts, sums * _BOUND, seconds * _BOUND**2


def _arrays(answer: Moments) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return (np.zeros(0) if answer.counts is None else answer.counts), answer.sums, answer.seconds


def _diagonals(array: np.ndarray) -> np.ndarray:
    """Of matrices; other arrays as they are."""
    return np.diagonal(array, axis1=1, axis2=2) if array.ndim == 3 else array


def _pixels(images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    latents = _BOUND * images.reshape(len(images), -1)[:, :8]
    return latents, np.zeros_like(latents)


def _two_sided(standard: np.ndarray) -> float:
    """p-value of Σ x² against χ², for too little and for too much."""
    total, degrees = float(np.sum(np.square(standard))), standard.size
    return min(1.0, 2 * min(float(chi2.cdf(total, degrees)), float(chi2.sf(total, degrees))))
