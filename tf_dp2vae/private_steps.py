"""One private step after another: done before, given again, lost, or new.

Keras calls the train function once a step; `train_step` itself runs in Python only when it is traced. So this is where a
step is charged, and where a resumed run passes over what was done before it was killed. Its loop starts from the first step
again: steps that the checkpoint holds pass at once, with the loss that they had, so that progress, history and callbacks
see as many steps as in a whole run. Weights, and so validation metrics, are the checkpoint's until it is caught up with.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from tf_dp2vae.answers import Answer, Answers
from tf_dp2vae.ledger import Charge

if TYPE_CHECKING:
    from tf_dp2vae.model import DP2VAE

ANSWER = "answer"
"""Key of the noised sums, numbered by variable, among what a compiled private step returns."""
_LOSS = "loss"


class PrivateSteps:
    """The train function of the private phase."""

    def __init__(self, model: DP2VAE, compiled: Any):
        """Args: the model; Keras's own train function, which draws a batch, answers and updates."""
        self._model, self._compiled = model, compiled
        self._checkpoints, self._progress = model.checkpoints, model.checkpoints.progress
        self._update = _compiled_update(model)
        self._begun = 0

    def __call__(self, iterator: Any) -> dict[str, Any]:
        """One step; its logs."""
        self._begun += 1
        self._model.count_step()
        if self._begun <= self._progress.step:
            return self._model.step_logs(self._progress.losses[self._begun - 1])
        logs = self._next(iterator)
        self._progress.step += 1
        self._checkpoints.tick()
        return logs

    def _next(self, iterator: Any) -> dict[str, Any]:
        """Takes the step that no checkpoint holds."""
        plan, answers = self._model.plan, self._checkpoints.answers
        assert plan is not None, "fit makes the plan before the first step"
        event = plan.step
        if answers is None:
            self._model.mechanisms.charge(event)
            return _without_answer(self._compiled(iterator))
        charge = answers.next_charge(event)
        stored = answers.recall(charge) if charge is not None else None
        if charge is None:
            logs = self._new(answers, answers.charge(event), iterator)
        elif stored is not None:
            logs = self._again(stored)
        else:
            logs = self._model.step_logs(math.nan)  # spent without an answer: nothing changes
        answers.position += 1
        self._progress.losses.append(float(logs[_LOSS]))
        return logs

    def _new(self, answers: Answers, charge: Charge, iterator: Any) -> dict[str, Any]:
        logs = self._compiled(iterator)
        answer = {name: noised.numpy() for name, noised in logs[ANSWER].items()}
        answers.keep(charge, {**answer, _LOSS: np.asarray(logs[_LOSS])})
        return _without_answer(logs)

    def _again(self, stored: Answer) -> dict[str, Any]:
        loss = float(stored.pop(_LOSS))
        self._update([tf.constant(stored[str(index)]) for index in range(len(stored))])
        return self._model.step_logs(loss)


def _without_answer(logs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in logs.items() if name != ANSWER}


def _compiled_update(model: DP2VAE) -> Any:
    """The second half of a private step: the update from an answer."""

    def update(answer: list[tf.Tensor]) -> None:
        model.update(lambda *_: answer)

    return update if model.run_eagerly else tf.function(update, jit_compile=model.jit_compile, autograph=False)
