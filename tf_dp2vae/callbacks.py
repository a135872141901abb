"""Callbacks of the two phases: what counts steps, and what keeps their private numbers."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras

from tf_dp2vae.progress import FreeStepsBar

if TYPE_CHECKING:
    from tf_dp2vae.checkpoints import Checkpoints


class StepsDone(keras.callbacks.Callback):
    """Counts the steps of pre-training, for the checkpoints and for whoever looks on."""

    def __init__(self, checkpoints: Checkpoints, bar: FreeStepsBar):
        """Args: what keeps them; what shows them."""
        super().__init__()
        self._checkpoints, self._bar = checkpoints, bar

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """One step is done."""
        self._bar.update(batch + 1, (logs or {}).get("loss"))
        self._checkpoints.progress.step += 1
        self._checkpoints.tick()


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
