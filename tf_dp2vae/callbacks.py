"""What is shown while training, and what a callback may not do."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras

from tf_dp2vae import accounting
from tf_dp2vae.validation import check

if TYPE_CHECKING:
    from tf_dp2vae.accounting import Event, Plan, Privacy
    from tf_dp2vae.model import DP2VAE

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


class StepsDone(keras.callbacks.Callback):
    """Counts the steps of pre-training, for the checkpoints."""

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """One step is done."""
        self.model.checkpoints.progress.step += 1
        self.model.checkpoints.tick()


class StepHistory(keras.callbacks.Callback):
    """Private loss and ε spent at each private step, for the private side.

    Attributes:
      values: `loss` and `epsilon`, one number a step.
    """

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, list[float]] = {"loss": [], "epsilon": []}

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Remembers one step."""
        for name, column in self.values.items():
            column.append(float((logs or {})[name]))

    def write_csv(self, path: Path) -> None:
        """One line a step."""
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["step", *self.values])
            writer.writerows([step, *row] for step, row in enumerate(zip(*self.values.values()), start=1))


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


_PRIVATE_CONTROL = (
    keras.callbacks.EarlyStopping,
    keras.callbacks.ReduceLROnPlateau,
    keras.callbacks.TerminateOnNaN,
    keras.callbacks.BackupAndRestore,
)


def refuse_private_control(callbacks: list[keras.callbacks.Callback]) -> None:
    """Refuses Keras's callbacks that let a private metric decide what is released, or go on with what another ledger paid.

    Raises:
      InvalidInputError: naming the callbacks and why.
    """
    by_type = [callback for callback in callbacks if isinstance(callback, _PRIVATE_CONTROL)]
    saving = [c for c in callbacks if isinstance(c, keras.callbacks.ModelCheckpoint) and c.save_best_only]
    names = ", ".join(type(callback).__name__ for callback in [*by_type, *saving])
    check(
        not names,
        f"callbacks {names} would stop, save or change rates by a private metric, or take up weights that another run paid "
        "for, which no event on the ledger covers: leave them out, fix the number of steps beforehand, and resume by "
        "Checkpoints.",
    )
