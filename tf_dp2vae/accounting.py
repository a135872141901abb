"""What a run costs: events, the accountants that judge them, and the noise that a budget pays for.

Neighbouring data sets differ by one record that is replaced by a null record contributing zero to every sum; the number
of records N is equal on both sides. The add-or-remove analysis of `dp_accounting` at constant sampling rate bounds this.
An event says what was run; the accountants (RDP: Mironov et al. 2019; PLD: Koskela et al. 2020, both dp_accounting's)
judge it. ε never comes from an optimizer's counter: only from the events of a ledger (`ledger`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import dp_accounting
import keras
from dp_accounting import pld, rdp
from dp_accounting.mechanism_calibration import NoBracketIntervalFoundError, NoOptimumFoundError

from tf_dp2vae.configuration import Configuration
from tf_dp2vae.validation import InvalidInputError, check, check_choice

AccountantName = Literal["rdp", "pld"]
ACCOUNTANTS = ("rdp", "pld")
ADJACENCY = "add-or-remove of one record (a record replaced by a null record, N equal)"
GAUSSIAN = "gaussian"
SUBSAMPLED = "poisson_sampled_gaussian"
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


def _accountant(name: AccountantName) -> dp_accounting.PrivacyAccountant:
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
    composed = dp_accounting.ComposedDpEvent([event.dp_event() for event in events])
    return float(_accountant(accountant).compose(composed).get_epsilon(delta))


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
        check(
            isinstance(self.epsilon, (int, float)) and math.isfinite(self.epsilon) and 0 < self.epsilon <= 1000,
            f"epsilon={self.epsilon!r} must lie in (0, 1000]: smaller is more private, 1 is a common choice.",
        )
        check(
            isinstance(self.delta, (int, float)) and 0 < self.delta < 1,
            f"delta={self.delta!r} must lie strictly between 0 and 1: 1e-5 is common, 1/N is too much.",
        )
        check_choice(ACCOUNTANTS, accountant=self.accountant)
        check(
            isinstance(self.l2_norm_clip, (int, float)) and _LEAST_CLIP <= self.l2_norm_clip <= 1 / _LEAST_CLIP,
            f"l2_norm_clip={self.l2_norm_clip!r} must lie in [{_LEAST_CLIP:g}, {1 / _LEAST_CLIP:g}]: beyond, float32 norms "
            "are no bound, and without a clip there is none.",
        )


@dataclass(frozen=True)
class Plan:
    """Every constant of a run that its guarantee depends on, fixed before the first record is read.

    Attributes:
      releases: the one-time releases (class statistics, latent moments, feature means), as events with count 1.
      noise_multiplier: σ of each private step.
      sampling_rate: q of each private step.
      steps: number of private steps.
    """

    releases: tuple[Event, ...]
    noise_multiplier: float
    sampling_rate: float
    steps: int

    @property
    def step(self) -> Event:
        """One private step."""
        return Event(GRADIENT_SUM, self.noise_multiplier, self.sampling_rate)

    @property
    def events(self) -> tuple[Event, ...]:
        """All that the run will charge."""
        steps = (replace(self.step, count=self.steps),) if self.steps else ()
        return self.releases + steps

    def release(self, mechanism: str) -> Event:
        """The planned one-time release of that mechanism."""
        return next(event for event in self.releases if event.mechanism == mechanism)


GRADIENT_SUM = "clipped gradient sum"
CLASS_STATISTICS = "class statistics"
DREAM_MOMENTS = "dream moments"
LATENT_MOMENTS = "latent moments"
FEATURE_MEANS = "feature means"


_WORTH_SPENDING = 0.99
"""A ledger that holds more than this part of the budget is full: what is left would drown in its noise."""
_LEAST_NOISE, _SLOW_NOISE = 0.05, 0.4
"""No noise multiplier lies below the first: a budget that would allow it, an ε of hundreds, is not spent to its end. Below
the second PLD is not asked, for it would take minutes."""
_MOST_NOISE = 1e6
"""Beyond it no search goes."""


def plan(
    privacy: Privacy,
    sampling_rate: float,
    steps: int,
    shares: dict[str, float] | None = None,
    spent: Sequence[Event] = (),
) -> Plan:
    """Calibrates all noise of a run so that, with what the ledger holds already, it costs ε and never more.

    It costs less where ε is in the hundreds (`_LEAST_NOISE`, `_SLOW_NOISE`).

    Args:
      privacy: the target.
      sampling_rate: q of each private step, in (0, 1].
      steps: how many private steps.
      shares: for each one-time release its share of the budget: its fraction of Σ 1/(2σ²) of the one Gaussian release
        that ε would pay for. The steps get what is left.
      spent: events that the ledger holds already.

    Raises:
      BudgetExceededError: the ledger has spent ε already; the message quotes both numbers.
    """
    shares = shares or {}
    before = epsilon(spent, privacy.delta, privacy.accountant)
    if before >= privacy.epsilon * _WORTH_SPENDING:
        raise BudgetExceededError(
            f"epsilon={privacy.epsilon:g} is the budget and the ledger has spent {before:.4g} of it: too little is left "
            "to train with. Raise epsilon (--epsilon), or use data that this ledger does not cover."
        )
    parts = ", ".join(f"{name} {share:g}" for name, share in shares.items())
    total = sum(shares.values())
    check(not steps or total < 1, f"budget shares ({parts}) must sum to less than 1: the private steps need a part.")
    check(total < 1 + 1e-9, f"budget shares ({parts}) must not sum to more than 1.")
    whole = _calibrate(privacy, spent, lambda sigma: [Event("whole budget", sigma)])
    releases = tuple(Event(name, whole / math.sqrt(share)) for name, share in shares.items())
    sigma = (
        _calibrate(privacy, (*spent, *releases), lambda s: [Event(GRADIENT_SUM, s, sampling_rate, steps)])
        if steps
        else math.inf
    )
    return Plan(releases, sigma, sampling_rate, steps)


def _calibrate(privacy: Privacy, spent: Sequence[Event], make_events: Callable[[float], list[Event]]) -> float:
    """The smallest σ (to 1e-4, but no less than `_LEAST_NOISE`) at which `spent` and `make_events(σ)` are in the budget."""
    if epsilon([*spent, *make_events(_LEAST_NOISE)], privacy.delta) <= privacy.epsilon:
        return _LEAST_NOISE
    bracket: Any = dp_accounting.LowerEndpointAndGuess(_LEAST_NOISE, 1.0)
    if privacy.accountant == "pld":
        bracket = _pld_bracket(privacy, spent, make_events)
        if bracket.endpoint_1 == bracket.endpoint_2:
            return bracket.endpoint_1

    def compose(sigma: float) -> dp_accounting.DpEvent:
        return dp_accounting.ComposedDpEvent([event.dp_event() for event in merged([*spent, *make_events(sigma)])])

    try:
        sigma = dp_accounting.calibrate_dp_mechanism(
            lambda: _accountant(privacy.accountant),
            compose,
            privacy.epsilon,
            privacy.delta,
            bracket_interval=bracket,
            tol=1e-4,
        )
    except (ValueError, RuntimeError, ArithmeticError, NoBracketIntervalFoundError, NoOptimumFoundError) as error:
        raise _out_of_reach(privacy, str(error)) from error
    return float(sigma)


def _pld_bracket(
    privacy: Privacy, spent: Sequence[Event], make_events: Callable[[float], list[Event]]
) -> dp_accounting.ExplicitBracketInterval:
    """Where PLD's answer lies; twice the same where that is the answer, for nothing below is searched.

    PLD composes slowly where σ is small. So the search begins at RDP's answer, which is never less, and goes down. Where
    RDP has none, since the ledger is full by its looser count, it begins at 1 and goes up.
    """

    def fits(sigma: float) -> bool:
        return epsilon([*spent, *make_events(sigma)], privacy.delta, "pld") <= privacy.epsilon

    try:
        high = _calibrate(replace(privacy, accountant="rdp"), spent, make_events)
    except InvalidInputError:
        high = 1.0
    if high <= _SLOW_NOISE:
        return dp_accounting.ExplicitBracketInterval(high, high)
    while not fits(high):
        if high > _MOST_NOISE:
            raise _out_of_reach(privacy, f"σ = {high:g} does not")
        high *= 2
    low = max(_SLOW_NOISE, 0.3 * high)
    while fits(low):
        low, high = max(_SLOW_NOISE, 0.3 * low), low
        if low == high:
            break
    return dp_accounting.ExplicitBracketInterval(low, high)


def _out_of_reach(privacy: Privacy, why: str) -> InvalidInputError:
    return InvalidInputError(
        f"epsilon={privacy.epsilon:g} with delta={privacy.delta:g}: no noise level reaches it ({why}). "
        "Choose a larger epsilon or fewer steps."
    )
