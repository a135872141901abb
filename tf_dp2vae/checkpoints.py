"""Checkpoints: where a run stands, so that a killed one goes on as if nothing had happened.

One file holds weights, optimizer states with their averages, the state of public randomness, phase and step, the plan, the
terms (what guarantee and result depend on, `terms`), and the ledger's count and head, under one digest. The file is
replaced atomically; the one before and the answers that it has settled are removed after that. What came after the last
checkpoint is made again from the stored answers (`answers`): public randomness is a function of its seed and of the step,
so the run ends where it would have ended. Private randomness has no state to keep.

Nothing here protects against a private folder that is put back, as a whole, to an earlier moment: then everything that
remembers agrees. Whoever keeps copies of a run must not resume two of them.
"""

from __future__ import annotations

import enum
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import keras
import numpy as np

from tf_dp2vae import accounting
from tf_dp2vae.accounting import BudgetExceededError, Event, Privacy
from tf_dp2vae.answers import Answers
from tf_dp2vae.durable import WAY_OUT, DamagedFileError, pack, storing, unpack, write_atomically
from tf_dp2vae.ledger import Ledger, new_identity
from tf_dp2vae.planning import Plan
from tf_dp2vae.terms import Terms, check_same_terms
from tf_dp2vae.validation import check, check_not_negative

_NETWORKS = "networks"
_ROUNDING = 1 + 1e-6
_SUFFIX = ".checkpoint"


class Phase(str, enum.Enum):
    """What a run is doing."""

    PRETRAINING = "pre-training"
    PRIVATE = "private training"


@dataclass
class Progress:
    """How far a run is.

    Attributes:
      phase: which one.
      step: steps done in that phase.
      sleeps: sleeps done.
      losses: of the private steps done; private numbers.
    """

    phase: Phase = Phase.PRETRAINING
    step: int = 0
    sleeps: int = 0
    losses: list[float] = field(default_factory=list)

    @property
    def begun(self) -> bool:
        """Whether anything was trained."""
        return self.step > 0 or self.phase is not Phase.PRETRAINING


class Checkpoints:
    """The checkpoints of one run. Without a folder nothing is kept, and only the progress is counted.

    Attributes:
      progress: how far the run is.
      resumed: whether a killed run goes on.
      answers: the stored answers; None without a folder.
      folder: the run's private folder, or None.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None, seconds: float = 30.0):
        """Creates nothing on disk yet.

        Args:
          folder: the run's private folder, which exists; `checkpoints` and `answers` go below it.
          seconds: time between two checkpoints; 0 makes one at every step. No effect on what comes out.

        Raises:
          InvalidInputError: seconds are no finite number of at least 0.
        """
        check_not_negative(checkpoint_seconds=seconds)
        self.folder = None if folder is None else Path(folder)
        self._folder = self.folder and self.folder / "checkpoints"
        self._seconds, self._saved_at, self._number = seconds, 0.0, 0
        self._tracked: dict[str, list[keras.Variable]] = {}
        self._restored: dict[str, np.ndarray] = {}
        self._begun = self.resumed = False
        self.progress = Progress()
        self.answers: Answers | None = None

    def begin(
        self,
        networks: Sequence[keras.Variable],
        ledger: Ledger,
        privacy: Privacy,
        terms: Callable[[], Terms],
        make_plan: Callable[[], Plan],
    ) -> Plan:
        """Begins a run, or finds where a killed one stood, and sets the networks to that.

        Args:
          networks: everything that goes from phase to phase.
          ledger: what is charged.
          privacy: the target, which the rest of a resumed run has to keep.
          terms: what a run must not change on the way; asked for only where there is a folder.
          make_plan: plans a new run.

        Raises:
          InvalidInputError: the terms differ, or files are damaged, missing or exchanged.
          BudgetExceededError: other runs have charged the ledger since, and the rest of this one has no room.
        """
        self.progress, self._tracked, self._restored = Progress(), {}, {}
        self._ledger, ledger.run = ledger, new_identity()
        if self._folder is None:
            self.plan = make_plan()
            return self.plan
        folder = self._folder.parent
        check(folder.is_dir(), f"checkpoints in {folder}: its folder does not exist; create it first.")
        check(not self._begun, f"the run in {folder} has been trained: give the model a new folder.")
        self._begun, self._terms = True, terms()
        with storing(self._folder):
            self._folder.mkdir(exist_ok=True)
        found = sorted(self._folder.glob(f"*{_SUFFIX}"))
        if found:
            self._restore(found[-1], privacy)
            self.track(_NETWORKS, networks)
        else:
            self.track(_NETWORKS, networks)
            self._start(make_plan)
        return self.plan

    def _start(self, make_plan: Callable[[], Plan]) -> None:
        assert self._folder is not None
        own = not self._ledger.shared and self._ledger.charges
        check(
            not own and not list((self._folder.parent / "answers").glob("*")),
            f"{self._folder} holds no checkpoint, but the run has charged its ledger: {WAY_OUT}.",
        )
        self.plan = make_plan()
        self._ledger.begin()
        self.answers = Answers(self._ledger, self._folder.parent / "answers")
        self.save()

    def _restore(self, file: Path, privacy: Privacy) -> None:
        meta, self._restored = unpack(file)
        check_same_terms(meta["terms"], self._terms)
        count, head = meta["ledger"]
        if self._ledger.head(count) != head:
            raise DamagedFileError(
                f"the ledger is not the one of {file}, or lines of it are missing (line {count} differs): {WAY_OUT}."
            )
        plan = meta["plan"]
        self.plan = Plan(**{**plan, "releases": tuple(Event(**event) for event in plan["releases"])})
        self.progress = Progress(**{**meta["progress"], "phase": Phase(meta["progress"]["phase"])})
        self._number, self._ledger.run = meta["number"], meta["run"]
        assert self._folder is not None
        self.answers = Answers(self._ledger, self._folder.parent / "answers", meta["settled"])
        self.resumed = True
        self._check_budget(privacy)
        self._saved_at = time.monotonic()

    def _check_budget(self, privacy: Privacy) -> None:
        """The rest of the plan must fit beside whatever the ledger holds by now."""
        charged = [charge.event for charge in self._ledger.charges if charge.run == self._ledger.run]
        rest = [event for event in self.plan.releases if event not in charged]
        steps = self.plan.steps and self.plan.steps - charged.count(self.plan.step)
        rest += [replace(self.plan.step, count=steps)] if steps > 0 else []
        total = accounting.epsilon([*self._ledger.events, *rest], privacy.delta, privacy.accountant)
        if total > privacy.epsilon * _ROUNDING:
            raise BudgetExceededError(
                f"epsilon={privacy.epsilon:g} is the budget, and with what other runs have charged to the ledger since, the "
                f"rest of this run would make {total:.4g}: it cannot go on. Its charges stay counted."
            )

    def events_beside_steps(self) -> list[Event]:
        """What the ledger holds, less this run's private steps."""
        run, step = self._ledger.run, self.plan.step
        return [charge.event for charge in self._ledger.charges if charge.run != run or charge.event != step]

    def track(self, name: str, variables: Sequence[keras.Variable]) -> None:
        """Puts these variables into every later checkpoint. Where a run goes on from one that has them, sets them, once."""
        if self._folder is None:
            return
        self._tracked[name] = list(variables)
        found = [self._restored.pop(key) for key in _keys(name, variables) if key in self._restored]
        if found:
            if [value.shape for value in found] != [tuple(variable.shape) for variable in variables]:
                raise DamagedFileError(f"the checkpoint in {self._folder} does not fit the {name}: {WAY_OUT}.")
            for variable, value in zip(variables, found):
                variable.assign(value)

    def enter(self, phase: Phase) -> None:
        """Begins the next phase; of what was tracked, only the networks go on."""
        self.progress.phase, self.progress.step = phase, 0
        self._tracked = {_NETWORKS: self._tracked[_NETWORKS]} if self._tracked else {}
        self.save()

    def tick(self) -> None:
        """A step of the phase is done: saves where it is time to."""
        if self._folder is not None and time.monotonic() - self._saved_at >= self._seconds:
            self.save()

    def save(self) -> None:
        """Writes a checkpoint, then removes what it replaces.

        Raises:
          StorageError: it could not be written; the one before still stands.
        """
        if self._folder is None or self.answers is None:
            return
        # Dreams are made anew from the answers when pre-training goes on, so these stay until it is over.
        settled = self.answers.position if self.progress.phase is Phase.PRIVATE else self.answers.settled
        self._number += 1
        meta = {
            "number": self._number,
            "run": self._ledger.run,
            "terms": self._terms,
            "plan": asdict(self.plan),
            "progress": asdict(self.progress),
            "ledger": [self._ledger.count, self._ledger.head()],
            "settled": settled,
        }
        arrays = {
            key: keras.ops.convert_to_numpy(variable)
            for name, variables in self._tracked.items()
            for key, variable in zip(_keys(name, variables), variables)
        }
        file = self._folder / f"{self._number:08d}{_SUFFIX}"
        write_atomically(file, pack(meta, arrays))
        with storing(self._folder):
            for old in self._folder.glob(f"*{_SUFFIX}"):
                if old != file:
                    old.unlink()
        self.answers.settle(settled)
        self._saved_at = time.monotonic()


def _keys(name: str, variables: Sequence[keras.Variable]) -> list[str]:
    return [f"{name}.{index}" for index in range(len(variables))]
