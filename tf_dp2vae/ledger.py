"""The ledger: an append-only record, on disk, of every event that was charged to one data set."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any

from tf_dp2vae.accounting import ADJACENCY, AccountantName, Event, epsilon, merged
from tf_dp2vae.validation import InvalidInputError, check


class Ledger:
    """The append-only record of what was spent on one data set.

    With a path, every charge is on disk (flushed to the device) before `charge` returns: a crash may waste budget, never
    hide it. One process at a time holds a ledger. Several runs on one data set share a ledger by its path.
    """

    def __init__(
        self, path: str | os.PathLike[str] | None = None, num_records: int | None = None, shared: bool = False
    ):
        """Opens the ledger, reading what it holds.

        Args:
          path: a JSON-lines file, created when missing; None keeps the ledger in memory.
          num_records: N of the data set; a ledger of another N is refused.
          shared: whether it is kept for all runs on the data set; the statement says so.

        Raises:
          InvalidInputError: the file is no ledger, is held by another process, or belongs to another number of records.
        """
        self.shared = shared
        self.num_records: int | None = None
        self._events: list[Event] = []
        self._file = None
        self._begun = False
        if path is not None:
            self._open(Path(path))
        self.bind(num_records)

    def _open(self, path: Path) -> None:
        self.path = path
        check(not self.path.is_dir(), f"ledger {self.path} is a folder: give the path of a file.")
        check(self.path.parent.is_dir(), f"ledger {self.path}: its folder does not exist; create it first.")
        try:
            self._file = open(self.path, "a+", encoding="utf-8")  # noqa: SIM115 - held for the ledger's life
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InvalidInputError(f"ledger {self.path} is in use by another run: wait for it to end.") from error
        except OSError as error:
            raise InvalidInputError(f"ledger {self.path} cannot be opened: {error.strerror}.") from error
        self._read()

    def _read(self) -> None:
        assert self._file is not None
        self._file.seek(0)
        text = self._file.read()
        self._begun = bool(text)
        if not text:
            return
        try:
            header, *entries = [json.loads(line) for line in text.splitlines()]
            self.num_records = header["num_records"]
            if header["adjacency"] != ADJACENCY:
                raise ValueError(f"another adjacency, {header['adjacency']!r}")
            self._events = [Event.from_json(entry) for entry in entries]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InvalidInputError(f"ledger {self.path} is not a ledger (or is damaged): {error}.") from error
        if not text.endswith("\n"):
            self._file.write("\n")  # a crash cut the last line's end off; the next entry needs a line of its own

    def bind(self, num_records: int | None) -> None:
        """Says how many records the data set has, N.

        Raises:
          InvalidInputError: the ledger belongs to another N.
        """
        check(
            None in (num_records, self.num_records) or num_records == self.num_records,
            f"the ledger belongs to a data set of {self.num_records} records, not {num_records}: one ledger a data set.",
        )
        self.num_records = num_records if num_records is not None else self.num_records

    def _write(self, entry: dict[str, Any]) -> None:
        if self._file is None:
            return
        if not self._begun:
            self._begun = True
            self._write({"ledger": 1, "adjacency": ADJACENCY, "num_records": self.num_records})
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def charge(self, event: Event) -> None:
        """Appends the event; on disk when this returns. Call it *before* the mechanism's answer is used."""
        self._write(event.to_json())
        self._events.append(event)

    @property
    def events(self) -> tuple[Event, ...]:
        """All that was charged, equal events counted together."""
        return merged(self._events)

    def epsilon(self, delta: float, accountant: AccountantName = "rdp") -> float:
        """ε of everything charged so far."""
        return epsilon(self.events, delta, accountant)

    def close(self) -> None:
        """Lets another process hold the ledger."""
        if self._file is not None:
            self._file.close()
            self._file = None
