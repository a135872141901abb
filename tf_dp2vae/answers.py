"""Noised answers, each stored beside its charge until a checkpoint holds what became of it.

A run that can be resumed goes through these steps for every answer:

  1. the charge is on the ledger, flushed;
  2. the mechanism reads records and answers, in memory;
  3. the answer is written beside the ledger, atomically, and then its digest onto the ledger;
  4. only now may anything that outlives the process depend on it.

So whatever moment a process is killed at, the next one finds each charge in one of three states:

| on the ledger   | stored answer | what it means and what happens                                                    |
|-----------------|---------------|-----------------------------------------------------------------------------------|
| charge          | there         | it is given again: nothing is paid, nothing is read                               |
| charge, digest  | none, another | it was used, and a second one would be one too many: refused                      |
| charge          | none          | nobody, not even this run's own later steps, has seen an answer: see below        |
| no such charge  | there         | the ledger was cut: refused                                                       |

An open charge of a *one-time release* is answered now. Its answer is a sum over all records, in which nothing is random,
and noise that is drawn last: what kills a process cannot choose among answers, for there are none before that draw. An
open charge of a *gradient sum* is spent and stays so: its random batch is drawn early, and a process that dies of its batch
and tries again would be choosing batches. That step counts as done and changes nothing. So a killed run keeps its plan,
never pays twice, never answers twice, and loses at most one update each time that it is killed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from tf_dp2vae.accounting import Event
from tf_dp2vae.durable import WAY_OUT, DamagedFileError, pack, sha256, storing, unpack, write_atomically
from tf_dp2vae.ledger import Charge, Ledger
from tf_dp2vae.mechanisms import Mechanisms
from tf_dp2vae.moments import Moments
from tf_dp2vae.randomness import Entropy
from tf_dp2vae.records import Records

Answer = dict[str, np.ndarray]
"""The arrays of one answer, by name."""


class Answers:
    """The answers to one run's charges, in the order of the charges.

    Attributes:
      settled: how many of the run's charges have no stored answer any more, because a checkpoint holds what became of it.
      position: how many of the run's charges this process has been through.
    """

    def __init__(self, ledger: Ledger, folder: Path, settled: int = 0):
        """Reads what is there.

        Args:
          ledger: its `run` says whose charges these are.
          folder: where answers are; created when missing.
          settled: from the checkpoint; 0 for a new run.

        Raises:
          DamagedFileError: ledger and answers do not belong together.
        """
        self._ledger, self._folder = ledger, folder
        self.settled = self.position = settled
        self._charges = [charge for charge in ledger.charges if charge.run == ledger.run]
        with storing(folder):
            folder.mkdir(exist_ok=True)
        self._check()
        self._remove(self._charges[:settled])

    def _check(self) -> None:
        for charge in self._charges[self.settled :]:
            digest, file = self._ledger.answers.get(charge.hash), self._file(charge)
            if digest is not None and not file.exists():
                raise DamagedFileError(
                    f"{file} is missing, but the ledger says that this answer was used: giving another would cost again. "
                    f"{WAY_OUT.capitalize()}."
                )
            if file.exists() and digest not in (None, self._digest(file)):
                raise DamagedFileError(f"{file} is not the answer that the ledger names: {WAY_OUT}.")
        known = {self._file(charge).name for charge in self._charges}
        strange = sorted(file.name for file in self._folder.glob("*.answer") if file.name not in known)
        if strange:
            raise DamagedFileError(
                f"{self._folder / strange[0]} answers no charge on the ledger, which has been cut or exchanged: {WAY_OUT}."
            )

    def _digest(self, file: Path) -> str:
        try:
            return sha256(file.read_bytes())
        except OSError as error:
            raise DamagedFileError(f"{file} cannot be read ({error.strerror}): {WAY_OUT}.") from error

    def _file(self, charge: Charge) -> Path:
        return self._folder / f"{charge.hash[:32]}.answer"

    def next_charge(self, event: Event) -> Charge | None:
        """The charge that a killed process has made already for what is asked now; None: it is to be charged.

        Raises:
          DamagedFileError: the run asks something else than it did before it was killed.
        """
        if self.position >= len(self._charges):
            return None
        charge = self._charges[self.position]
        if charge.event != event:
            raise DamagedFileError(
                f"charge {self.position + 1} of this run is {charge.event.mechanism!r} on the ledger, but the run now asks "
                f"for {event.mechanism!r}: {WAY_OUT}."
            )
        return charge

    def recall(self, charge: Charge) -> Answer | None:
        """The stored answer to the charge, or None where it is open."""
        if not self._file(charge).exists():
            return None
        meta, answer = unpack(self._file(charge))
        if meta != {"charge": charge.hash}:
            raise DamagedFileError(f"{self._file(charge)} answers another charge: {WAY_OUT}.")
        if charge.hash not in self._ledger.answers:
            self._ledger.answered(charge, self._digest(self._file(charge)))
        return answer

    def charge(self, event: Event) -> Charge:
        """Puts the event on the ledger."""
        self._ledger.charge(event)
        self._charges.append(self._ledger.charges[-1])
        return self._charges[-1]

    def keep(self, charge: Charge, answer: Answer) -> None:
        """Stores the answer beside its charge, and that it is there on the ledger; on disk when this returns."""
        content = pack({"charge": charge.hash}, answer)
        write_atomically(self._file(charge), content)
        self._ledger.answered(charge, sha256(content))

    def settle(self, settled: int) -> None:
        """Forgets the answers to the run's first charges: a checkpoint that is on disk holds what became of them."""
        self._remove(self._charges[self.settled : settled])
        self.settled = settled

    def _remove(self, charges: list[Charge]) -> None:
        with storing(self._folder):
            for charge in charges:
                self._file(charge).unlink(missing_ok=True)


class AnsweringMechanisms(Mechanisms):
    """The mechanisms of a run that can be resumed: each one-time release is charged once and answered once."""

    def __init__(self, ledger: Ledger, entropy: Entropy, answers: Answers):
        super().__init__(ledger, entropy)
        self.answers = answers
        self._open: Charge | None = None

    def charge(self, event: Event) -> None:
        """Charges, unless this is what a killed process has charged already."""
        self._open = self.answers.next_charge(event) or self.answers.charge(event)

    def release_moments(self, records: Records, event: Event, *arguments: Any, **named: Any) -> Moments:
        """The stored answer to this charge where there is one, else the mechanism's."""
        ask = super().release_moments
        return self._once(event, lambda: ask(records, event, *arguments, **named))

    def _once(self, event: Event, ask: Callable[[], Moments]) -> Moments:
        charge = self.answers.next_charge(event)
        stored = self.answers.recall(charge) if charge is not None else None
        moments = ask() if stored is None else _moments(stored)
        if stored is None:
            assert self._open is not None
            self.answers.keep(self._open, _arrays(moments))
        self.answers.position += 1
        return moments


def _arrays(moments: Moments) -> Answer:
    values = {field.name: getattr(moments, field.name) for field in fields(moments)}
    return {name: np.asarray(value) for name, value in values.items() if value is not None}


def _moments(answer: Answer) -> Moments:
    absent: dict[str, Any] = {field.name: None for field in fields(Moments)}
    present = {name: array if array.ndim else array.item() for name, array in answer.items()}
    return Moments(**{**absent, **present})
