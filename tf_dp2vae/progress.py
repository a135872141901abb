"""What is shown while training: the phase, its steps, and the ε that is spent."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import keras

from tf_dp2vae import accounting

if TYPE_CHECKING:
    from tf_dp2vae.accounting import Event, Privacy
    from tf_dp2vae.model import DP2VAE
    from tf_dp2vae.planning import Plan

_POINTS = 24
_SECONDS_WATCHED, _SECONDS_LOGGED = 0.05, 10.0
"""Between two states of a bar: where somebody looks on and it writes over itself, and in a log, which keeps them all."""


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


class FreeStepsBar:
    """Keras's progress bar for steps that cost nothing, with the ε that was spent before them."""

    def __init__(self, steps: int, verbose: int, epsilon: float | None = None):
        """Args: how many; 0 (silent), 1 (a bar) or 2 (one line at the end); None where no ε covers what is trained."""
        watched = sys.stdout.isatty() or "ipykernel" in sys.modules
        interval = _SECONDS_WATCHED if watched else _SECONDS_LOGGED
        self._bar = keras.utils.Progbar(steps, verbose=verbose, interval=interval, stateful_metrics=["loss", "epsilon"])
        self._spent = [] if epsilon is None else [("epsilon", epsilon)]

    def update(self, done: int, loss: float | None = None) -> None:
        """So many steps are done; the loss is shown where there is one."""
        self._bar.update(done, [*([] if loss is None else [("loss", loss)]), *self._spent])


class PhaseProgress:
    """Says which phase begins, how far it is, and what has been spent."""

    def __init__(self, model: DP2VAE, verbose: str | int):
        """Args: what is trained; as in Keras."""
        self._model, self._quiet = model, verbose in (0, "0")
        self._verbose = 0 if self._quiet else 2 if verbose in (2, "2") else 1

    def phase(self, what: str) -> None:
        """Announces a phase."""
        self._say(f"[{self._spent()}] {what}")

    def done(self) -> None:
        """Announces the end."""
        self._say(f"[{self._spent()}] done")

    def bar(self, steps: int) -> FreeStepsBar:
        """A bar for steps that charge nothing, of pre-training and of matching."""
        return FreeStepsBar(steps, self._verbose, None if self._quiet else self._epsilon())

    def _spent(self) -> str:
        epsilon = self._epsilon()
        return "NOT PRIVATE" if epsilon is None else f"epsilon spent {epsilon:.3f} of {self._model.privacy.epsilon:g}"

    def _epsilon(self) -> float | None:
        privacy = self._model.privacy
        if not self._model.pretraining.private:
            return None
        return self._model.ledger.epsilon(privacy.delta, privacy.accountant)

    def _say(self, text: str) -> None:
        if not self._quiet:
            print(text, flush=True)
