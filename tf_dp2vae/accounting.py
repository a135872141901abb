"""What a run costs: events, the accountants that judge them, and the guarantee that a run is to have.

Neighbouring data sets differ by one record that is replaced by a null record contributing zero to every sum; the number
of records N is equal on both sides. The add-or-remove analysis of `dp_accounting` at constant sampling rate bounds this.
An event says what was run; the accountants (RDP: Mironov et al. 2019; PLD: Koskela et al. 2020, both dp_accounting's)
judge it. ε never comes from an optimizer's counter: only from the events of a ledger (`ledger`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import dp_accounting
import keras
from dp_accounting import pld, rdp

from tf_dp2vae.configuration import Configuration
from tf_dp2vae.validation import InvalidInputError, check, check_choice, check_number

AccountantName = Literal["rdp", "pld"]
ACCOUNTANTS = ("rdp", "pld")
ADJACENCY = "add-or-remove of one record (a record replaced by a null record, N equal)"
GAUSSIAN = "gaussian"
SUBSAMPLED = "poisson_sampled_gaussian"

GRADIENT_SUM = "clipped gradient sum"
CLASS_STATISTICS = "class statistics"
DREAM_MOMENTS = "dream moments"
LATENT_MOMENTS = "latent moments"
FEATURE_MEANS = "feature means"

_LEAST_CLIP = 1e-6
"""Squares of float32 gradients far below it count as 0, and those far above its inverse as infinite."""

RDP_ORDERS = [1 + x / 10 for x in range(1, 100)] + list(range(11, 64)) + [64, 80, 96, 128, 192, 256, 384, 512, 1024]
"""Where Rényi divergences are taken. At ε ≤ 0.2 the best order lies above 64, at ε ≥ 10 between 1.1 and 3."""


class BudgetExceededError(InvalidInputError):
    """The ledger has no room for what is asked."""


@dataclass(frozen=True)
class Event:
    """`count` calls of one mechanism.

    Attributes:
      mechanism: which one, for example `clipped gradient sum`.
      noise_multiplier: σ, the noise's standard deviation divided by the L2 sensitivity (no unit).
      sampling_rate: q, the probability with which each record is in a call's batch; 1 means that all records are.
      count: how many calls.
    """

    mechanism: str
    noise_multiplier: float
    sampling_rate: float = 1.0
    count: int = 1

    def __post_init__(self) -> None:
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier > 0):
            raise ValueError(f"noise_multiplier={self.noise_multiplier!r} must be a finite number above 0.")
        if not 0 < self.sampling_rate <= 1:
            raise ValueError(f"sampling_rate={self.sampling_rate!r} must lie in (0, 1].")
        if not (isinstance(self.count, int) and self.count >= 1):
            raise ValueError(f"count={self.count!r} must be a whole number of at least 1.")

    @property
    def type(self) -> str:
        """`gaussian`, or `poisson_sampled_gaussian` where q < 1."""
        return GAUSSIAN if self.sampling_rate == 1.0 else SUBSAMPLED

    def dp_event(self) -> dp_accounting.DpEvent:
        """The same, as `dp_accounting` writes it."""
        event: dp_accounting.DpEvent = dp_accounting.GaussianDpEvent(self.noise_multiplier)
        if self.sampling_rate < 1.0:
            event = dp_accounting.PoissonSampledDpEvent(self.sampling_rate, event)
        return dp_accounting.SelfComposedDpEvent(event, self.count)

    def to_json(self) -> dict[str, Any]:
        """The event as it stands in `privacy.json`."""
        return {**asdict(self), "type": self.type}

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> Event:
        """The inverse of `to_json`."""
        return cls(entry["mechanism"], entry["noise_multiplier"], entry["sampling_rate"], entry["count"])


def merged(events: Iterable[Event]) -> tuple[Event, ...]:
    """Equal events counted together, in order of first appearance."""
    counts: dict[Event, int] = {}
    for event in events:
        key = replace(event, count=1)
        counts[key] = counts.get(key, 0) + event.count
    return tuple(replace(event, count=count) for event, count in counts.items())


def lacking(events: Iterable[Event], among: Iterable[Event]) -> tuple[str, ...]:
    """Mechanisms of the events that are not `among` the others as often, with their noise and sampling rate."""
    found = {replace(event, count=1): event.count for event in merged(among)}
    missing = [event for event in merged(events) if found.get(replace(event, count=1), 0) < event.count]
    return tuple(dict.fromkeys(event.mechanism for event in missing))


def composed(events: Iterable[Event]) -> dp_accounting.DpEvent:
    """All of them together, as `dp_accounting` writes it."""
    return dp_accounting.ComposedDpEvent([event.dp_event() for event in events])


def accountant_of(name: AccountantName) -> dp_accounting.PrivacyAccountant:
    """A new one of dp_accounting's."""
    check_choice(ACCOUNTANTS, accountant=name)
    relation = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
    if name == "rdp":
        return rdp.RdpAccountant(RDP_ORDERS, relation)
    return pld.PLDAccountant(relation, value_discretization_interval=1e-4)


def epsilon(events: Sequence[Event], delta: float, accountant: AccountantName = "rdp") -> float:
    """ε of the composition of `events` at δ, by the named accountant; 0 for no events.

    Args:
      events: what was run.
      delta: δ, a probability.
      accountant: `rdp` (Rényi, looser, fast) or `pld` (privacy loss distribution, tighter).
    """
    return _epsilon(merged(events), delta, accountant) if events else 0.0


@functools.lru_cache(maxsize=256)  # progress, statement and guards ask the same again; each takes up to seconds
def _epsilon(events: tuple[Event, ...], delta: float, accountant: AccountantName) -> float:
    return float(accountant_of(accountant).compose(composed(events)).get_epsilon(delta))


@keras.saving.register_keras_serializable("tf_dp2vae")
@dataclass(frozen=True)
class Privacy(Configuration):
    """The guarantee that a training is to have. One line a flag.

    Attributes:
      epsilon: target ε of the whole training, all mechanisms composed (no unit; 1 is common, above 10 says little).
      delta: δ, the probability left out of ε; well below 1/N for N records.
      accountant: which accountant calibrates the noise: rdp (safe, fast) or pld (tighter, so less noise).
      l2_norm_clip: C, bound on the L2 norm of one record's gradient (no unit; the noise grows with it).
    """

    epsilon: float = 1.0
    delta: float = 1e-5
    accountant: AccountantName = "rdp"
    l2_norm_clip: float = 1.0

    def __post_init__(self) -> None:
        check_number(epsilon=self.epsilon, delta=self.delta, l2_norm_clip=self.l2_norm_clip)
        check(
            math.isfinite(self.epsilon) and 0 < self.epsilon <= 1000,
            f"epsilon={self.epsilon!r} must lie in (0, 1000]: smaller is more private, 1 is a common choice.",
        )
        check(
            0 < self.delta < 1,
            f"delta={self.delta!r} must lie strictly between 0 and 1: 1e-5 is common, 1/N is too much.",
        )
        check_choice(ACCOUNTANTS, accountant=self.accountant)
        check(
            _LEAST_CLIP <= self.l2_norm_clip <= 1 / _LEAST_CLIP,
            f"l2_norm_clip={self.l2_norm_clip!r} must lie in [{_LEAST_CLIP:g}, {1 / _LEAST_CLIP:g}]: beyond, float32 norms "
            "are no bound, and without a clip there is none.",
        )
