"""A witness inside a training process: tells a pipe where the run is, what mechanisms answered, and what was used.

What was written into a pipe is not lost when the writer is killed. Answers are counted where noise is added, and their use
where they are handed on, by code of its own that knows nothing of the ledger.
"""

from __future__ import annotations

import hashlib
import os
from typing import Any

import numpy as np

from tf_dp2vae import answers, checkpoints, figures, ledger, runs
from tf_dp2vae.accounting import GRADIENT_SUM
from tf_dp2vae.answers import Answers
from tf_dp2vae.callbacks import StepsDone
from tf_dp2vae.mechanisms import Mechanisms
from tf_dp2vae.model import DP2VAE
from tf_dp2vae.pretraining import Dreams
from tf_dp2vae.priors import GaussianPrior
from tf_dp2vae.private_steps import PrivateSteps
from tf_dp2vae.refinement import Refinement
from tf_dp2vae.wake_sleep import Sleep


class Witness:
    """Wraps what it watches, in this process."""

    def __init__(self, pipe: int):
        """Args: the descriptor to write to."""
        self._pipe = pipe

    def tell(self, *words: str) -> None:
        """One line."""
        os.write(self._pipe, ("\t".join(words) + "\n").encode())

    def install(self) -> None:
        """Watches from now on."""
        places = [
            (Dreams, "release", "statistics"),
            (DP2VAE, "pretrain", "pre-training"),
            (DP2VAE, "ready_private_steps", "private training"),
            (Sleep, "on_epoch_end", "sleep"),
            (Sleep, "on_epoch_begin", "private training"),
            (GaussianPrior, "fit", "prior"),
            (Refinement, "run", "refinement"),
            (runs.RunFolder, "write_release", "export"),
        ]
        for owner, name, place in places:
            self._around(owner, name, before=lambda *_, place=place: self.tell(f"at {place}"))
        for owner, name in [
            (answers, "write_atomically"),
            (checkpoints, "write_atomically"),
            (runs, "write_atomically"),
            (runs, "sync_tree"),
            (ledger, "append"),
            (StepsDone, "on_train_batch_end"),
            (figures, "sample_grid"),
            (Answers, "settle"),
        ]:
            self._around(owner, name, before=self._event, after=self._event)
        # Below what a resumed run asks again, so that an answer that is only recalled is not told.
        self._around(
            Mechanisms, "release_moments", after=lambda _, __, ___, event, *rest: self.tell("made", event.mechanism)
        )
        self._around(
            Answers, "keep", after=lambda _, __, charge, answer: self.tell("used", charge.hash, _digest(answer))
        )
        self._around(Answers, "recall", after=self._recalled)
        self._around(PrivateSteps, "__init__", after=self._watch_steps)

    def _event(self, *_: Any) -> None:
        self.tell("event")

    def _recalled(self, answer: Any, _: Answers, charge: Any) -> None:
        if answer is not None:
            self.tell("used", charge.hash, _digest(answer))

    def _watch_steps(self, _: None, steps: PrivateSteps, *__: Any) -> None:
        self._around(steps, "_compiled", after=lambda *_: self.tell("made", GRADIENT_SUM))

    def _around(self, owner: Any, name: str, before: Any = None, after: Any = None) -> None:
        inner = getattr(owner, name)

        def watched(*arguments: Any, **named: Any) -> Any:
            if before is not None:
                before(*arguments)
            answer = inner(*arguments, **named)
            if after is not None:
                after(answer, *arguments)
            return answer

        setattr(owner, name, watched)


def _digest(answer: dict[str, np.ndarray]) -> str:
    parts = sorted((name, np.asarray(array).tobytes()) for name, array in answer.items())
    return hashlib.sha256(b"".join(name.encode() + content for name, content in parts)).hexdigest()
