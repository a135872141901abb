"""What is shown while training: the phase, and the ε that is spent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import keras

from tf_dp2vae import accounting

if TYPE_CHECKING:
    from tf_dp2vae.accounting import Event, Privacy
    from tf_dp2vae.model import DP2VAE
    from tf_dp2vae.planning import Plan

_POINTS = 24


class EpsilonSpent(keras.metrics.Metric):
    """ε of the ledger, for the progress bar. Follows the ledger; resets with nothing."""

    def __init__(self, name: str = "epsilon", **kwargs: Any):
        super().__init__(name=name, **kwargs)
        self._spent = self.add_variable(shape=(), initializer="zeros", name="spent")
        self._curve: list[tuple[int, float]] = []
        self._steps = 0

    def follow(self, spent: Sequence[Event], plan: Plan, privacy: Privacy) -> None:
        """Prepares ε for the steps that the plan is about to take, beside what is spent already.

        Composing thousands of events at each step would cost more than the step, so ε is computed at some counts, and
        what is shown between them is the next one's: never too little.
        """
        counts = sorted({max(1, round(plan.steps * point / _POINTS)) for point in range(1, _POINTS + 1)})
        step = plan.step
        self._steps = 0
        self._curve = [
            (
                count,
                accounting.epsilon(
                    [
                        *spent,
                        accounting.Event(step.mechanism, step.noise_multiplier, step.sampling_rate, count),
                    ],
                    privacy.delta,
                    privacy.accountant,
                ),
            )
            for count in counts
        ]

    def advance(self) -> None:
        """One more step was charged."""
        self._steps += 1
        self._spent.assign(next((value for count, value in self._curve if count >= self._steps), self._curve[-1][1]))

    def update_state(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the ledger is the state."""

    def reset_state(self) -> None:
        """Nothing: what is spent stays spent."""

    def result(self) -> Any:
        """ε spent."""
        return self._spent


class PhaseProgress:
    """Says which phase begins and what has been spent."""

    def __init__(self, model: DP2VAE, verbose: str | int):
        self._model, self._quiet = model, verbose in (0, "0")

    def phase(self, what: str) -> None:
        """Announces a phase."""
        self._say(f"[{self._spent()}] {what}")

    def done(self) -> None:
        """Announces the end."""
        self._say(f"[{self._spent()}] done")

    def _spent(self) -> str:
        privacy = self._model.privacy
        if not self._model.pretraining.private:
            return "NOT PRIVATE"
        spent = self._model.ledger.epsilon(privacy.delta, privacy.accountant)
        return f"epsilon spent {spent:.3f} of {privacy.epsilon:g}"

    def _say(self, text: str) -> None:
        if not self._quiet:
            print(text, flush=True)
