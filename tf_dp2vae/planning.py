"""What a run will ask of the records: the constants that its guarantee rests on, and the noise that the budget pays for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import dp_accounting
from dp_accounting.mechanism_calibration import NoBracketIntervalFoundError, NoOptimumFoundError

from tf_dp2vae.accounting import (
    GRADIENT_SUM,
    BudgetExceededError,
    Event,
    Privacy,
    accountant_of,
    epsilon,
    merged,
)
from tf_dp2vae.validation import InvalidInputError, check

MakeEvents = Callable[[float], list[Event]]
"""What would be asked with that noise multiplier σ."""


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
    whole = _noise_multiplier(privacy, spent, lambda sigma: [Event("whole budget", sigma)])
    releases = tuple(Event(name, whole / math.sqrt(share)) for name, share in shares.items())
    sigma = (
        _noise_multiplier(privacy, (*spent, *releases), lambda s: [Event(GRADIENT_SUM, s, sampling_rate, steps)])
        if steps
        else math.inf
    )
    return Plan(releases, sigma, sampling_rate, steps)


def _noise_multiplier(privacy: Privacy, spent: Sequence[Event], make_events: MakeEvents) -> float:
    """The smallest σ (to 1e-4, but no less than `_LEAST_NOISE`) at which `spent` and `make_events(σ)` are in the budget."""
    if epsilon([*spent, *make_events(_LEAST_NOISE)], privacy.delta) <= privacy.epsilon:
        return _LEAST_NOISE
    if privacy.accountant == "pld":
        return _noise_multiplier_by_pld(privacy, spent, make_events)
    return _root(privacy, spent, make_events, dp_accounting.LowerEndpointAndGuess(_LEAST_NOISE, 1.0))


def _noise_multiplier_by_pld(privacy: Privacy, spent: Sequence[Event], make_events: MakeEvents) -> float:
    """Begins at RDP's answer, which is never less, and goes down, since PLD composes slowly where σ is small.

    Where RDP has none, because the ledger is full by its looser count, the search begins at 1 and goes up.
    """

    def fits(sigma: float) -> bool:
        return epsilon([*spent, *make_events(sigma)], privacy.delta, "pld") <= privacy.epsilon

    try:
        high = _noise_multiplier(replace(privacy, accountant="rdp"), spent, make_events)
    except InvalidInputError:
        high = 1.0
    if high <= _SLOW_NOISE:
        return high
    while not fits(high):
        if high > _MOST_NOISE:
            raise _out_of_reach(privacy, f"σ = {high:g} does not")
        high *= 2
    low = max(_SLOW_NOISE, 0.3 * high)
    while fits(low):
        if low == _SLOW_NOISE:
            return low
        low, high = max(_SLOW_NOISE, 0.3 * low), low
    return _root(privacy, spent, make_events, dp_accounting.ExplicitBracketInterval(low, high))


def _root(privacy: Privacy, spent: Sequence[Event], make_events: MakeEvents, bracket: Any) -> float:
    """The σ in the bracket at which ε is reached, on the side of more noise."""

    def compose(sigma: float) -> dp_accounting.DpEvent:
        return dp_accounting.ComposedDpEvent([event.dp_event() for event in merged([*spent, *make_events(sigma)])])

    try:
        sigma = dp_accounting.calibrate_dp_mechanism(
            lambda: accountant_of(privacy.accountant),
            compose,
            privacy.epsilon,
            privacy.delta,
            bracket_interval=bracket,
            tol=1e-4,
        )
    except (ValueError, RuntimeError, ArithmeticError, NoBracketIntervalFoundError, NoOptimumFoundError) as error:
        raise _out_of_reach(privacy, str(error)) from error
    return float(sigma)


def _out_of_reach(privacy: Privacy, why: str) -> InvalidInputError:
    return InvalidInputError(
        f"epsilon={privacy.epsilon:g} with delta={privacy.delta:g}: no noise level reaches it ({why}). "
        "Choose a larger epsilon or fewer steps."
    )
