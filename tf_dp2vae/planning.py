"""What a run will ask of the records: the constants that its guarantee rests on, and the noise that the budget pays for."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from scipy import optimize

from tf_dp2vae.accounting import (
    GRADIENT_SUM,
    BudgetExceededError,
    Event,
    Privacy,
    accountant_of,
    composed,
    epsilon,
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
_TOLERANCE = 1e-4
"""By so much σ may exceed the least that would do."""


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
      InvalidInputError: shares leave nothing for the steps, or no noise is enough for so small an ε.
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
    by_rdp = _overspending(replace(privacy, accountant="rdp"), spent, make_events)
    if by_rdp(_LEAST_NOISE) <= 0:
        return _LEAST_NOISE
    try:
        sigma = _least_that_fits(privacy, by_rdp, guess=1.0, stride=2.0, floor=_LEAST_NOISE)
    except InvalidInputError:
        # What is full by RDP's looser count may have room by PLD's.
        if privacy.accountant == "rdp":
            raise
        sigma = 1.0
    if privacy.accountant == "rdp" or sigma <= _SLOW_NOISE:
        return sigma
    by_pld = _overspending(privacy, spent, make_events)
    return _least_that_fits(privacy, by_pld, guess=sigma, stride=1.25, floor=_SLOW_NOISE)


def _overspending(privacy: Privacy, spent: Sequence[Event], make_events: MakeEvents) -> Callable[[float], float]:
    """How far beyond ε `spent` and `make_events(σ)` are, by σ. `spent` is composed once, however many σ are tried."""
    before = accountant_of(privacy.accountant).compose(composed(spent))

    @functools.cache
    def overspending(sigma: float) -> float:
        try:
            accountant = copy.deepcopy(before).compose(composed(make_events(sigma)))
            return float(accountant.get_epsilon(privacy.delta)) - privacy.epsilon
        except (ValueError, ArithmeticError) as error:  # what rounding leaves of hardly any loss may be negative
            raise _out_of_reach(privacy, f"σ = {sigma:g}: {error}") from error

    return overspending


def _least_that_fits(
    privacy: Privacy, overspending: Callable[[float], float], guess: float, stride: float, floor: float
) -> float:
    """The smallest σ of at least `floor` that overspends nothing, to `_TOLERANCE` and on the side of more noise.

    Goes up from `guess` by doubling, or down by `stride`, for small σ compose slowly; the root lies between the last two.
    """
    high = guess
    while overspending(high) > 0:
        if high > _MOST_NOISE:
            raise _out_of_reach(privacy, f"σ = {high:g} does not")
        high *= 2
    low = max(floor, high / (stride if high == guess else 2))
    while overspending(low) <= 0:
        if low == floor:
            return floor
        low, high = max(floor, low / stride), low
    sigma = float(optimize.brentq(overspending, low, high, xtol=_TOLERANCE))
    while overspending(sigma) > 0:
        sigma = min(sigma + _TOLERANCE, high)
    return sigma


def _out_of_reach(privacy: Privacy, why: str) -> InvalidInputError:
    return InvalidInputError(
        f"epsilon={privacy.epsilon:g} with delta={privacy.delta:g}: no noise level reaches it ({why}). "
        "Choose a larger epsilon or fewer steps."
    )
