"""The ledger: an append-only record, on disk, of every event that was charged to one data set.

One JSON object a line: a header, then charges, and for runs that can be resumed the digest of each charge's answer. Every
line carries a hash over itself and the hash of the line before, so a line that was edited, dropped, moved or brought in
from another ledger is recognised; that lines are missing at the end is recognised by whoever remembers the head (a run's
checkpoint) or an answer (`answers`). The chain has no key: whoever rewrites all of it, and everything that remembers it,
is not recognised.

A crash can cut off the last line. A whole line without its newline counts. Less than a line is dropped, because `charge`
had not returned, so nothing had been asked of the records.
"""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tf_dp2vae.accounting import ADJACENCY, AccountantName, Event, epsilon, merged
from tf_dp2vae.durable import WAY_OUT, DamagedFileError, append, sha256, storing, sync_folder
from tf_dp2vae.validation import InvalidInputError, check, check_path

VERSION = 3
_HEADER, _ANSWER, _HASH, _RUN, _GUARANTEED = "ledger", "answer", "hash", "run", "guaranteed"
_ADD_OR_REMOVE = "add-or-remove of one "
"""How the adjacency of records and that of persons begin: null records stand for what is removed."""


@dataclass(frozen=True)
class Charge:
    """One charge as it stands on the ledger.

    Attributes:
      event: what was charged.
      run: the identity of the run that charged it.
      hash: of its line; names the charge.
    """

    event: Event
    run: str
    hash: str


class Ledger:
    """The append-only record of what was spent on one data set.

    With a path, every charge is on disk (flushed to the device) before `charge` returns: a crash may waste budget, never
    hide it. One process at a time holds a ledger in a file. Several runs on one data set share a ledger: one object, or one
    path after the other; then all of them are in their statements. `shared=True` says beforehand that it is kept for all.
    Nothing is written to a file that anybody else wrote to, replaced or removed meanwhile, nor by a forked process.
    `with Ledger(path) as ledger:` lets go of the file at the end, as `close` does.

    Attributes:
      run: identity of the run that charges.
      charges: every charge, in order.
      answers: for the hash of a charge, the digest of its stored answer, where one was stored.
      path: its file; None for one in memory.
      detached: whether it is a copy, in a saved model, of a ledger that is a file. Nothing can be charged to it.
    """

    path: Path | None = None
    detached = False

    def __init__(
        self, path: str | os.PathLike[str] | None = None, num_records: int | None = None, shared: bool = False
    ):
        """Opens the ledger, reading what it holds.

        Args:
          path: a JSON-lines file, created when missing; None keeps the ledger in memory.
          num_records: N of the data set; a ledger of another N is refused.
          shared: whether it is kept for all runs on the data set: statements say so from the first run on, and runs
            without a guarantee are refused.

        Raises:
          InvalidInputError: the file is no ledger, is damaged, is held by another process or by another object of this one,
            or belongs to another N.
        """
        self.shared, self.run = shared, ""
        self.num_records: int | None = None
        self.adjacency = ADJACENCY
        self._guaranteed: bool | None = None
        self.charges: list[Charge] = []
        self.answers: dict[str, str] = {}
        self._hashes: list[str] = []
        self._file: BinaryIO | None = None
        self._size, self._whole, self._end = 0, 0, b""
        self._process = os.getpid()
        self._failed = False
        if path is not None:
            self._open(Path(path))
        self.bind(num_records)

    def _open(self, path: Path) -> None:
        self.path = path
        check_path("ledger", self.path)
        check(not self.path.is_dir(), f"ledger {self.path} is a folder: give the path of a file.")
        check(self.path.parent.is_dir(), f"ledger {self.path}: its folder does not exist; create it first.")
        try:
            self._file = open(self.path, "ab+")  # noqa: SIM115 - held for the ledger's life
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._file.seek(0)
            content = self._file.read()
            gone = not self.path.exists() or not os.path.samestat(os.fstat(self._file.fileno()), self.path.stat())
        except BlockingIOError as error:
            self.close()
            raise InvalidInputError(
                f"ledger {self.path} is in use by another run, or by this program: wait for that run to end, or call "
                "close() on the earlier Ledger."
            ) from error
        except OSError as error:
            raise InvalidInputError(f"ledger {self.path} cannot be opened: {error.strerror}.") from error
        if gone:  # between opening and locking, by a run that left nothing in it
            self.close()
            raise InvalidInputError(f"ledger {self.path} was removed while it was opened: start again.")
        try:
            self._read(content)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            self.close()
            raise DamagedFileError(
                f"ledger {self.path} is not a ledger (or is damaged): {str(error).rstrip('.')}: {WAY_OUT}."
            ) from error

    def _read(self, content: bytes) -> None:
        *lines, tail = content.split(b"\n")
        if tail.endswith(b"}"):
            lines.append(tail)
            self._end = b"\n"
        else:
            # A line that a crash cut off begins like a line and has no closing brace yet.
            begun = b'{"' if lines else f'{{"{_HEADER}": {VERSION}'.encode()
            if b"}" in tail or tail[: len(begun)] != begun[: len(tail)]:
                raise ValueError(f"line {len(lines) + 1} ends in what no crash leaves there")
        for number, line in enumerate(lines, start=1):
            self._read_line(number, line)
        self._size, self._whole = len(content), len(content) - (0 if self._end else len(tail))

    def _read_line(self, number: int, line: bytes) -> None:
        entry = json.loads(line)
        found = entry.pop(_HASH)
        if found != self._next_hash(entry) or line != _line({**entry, _HASH: found}):
            raise ValueError(f"line {number} does not follow from the lines before it")
        if number == 1:
            if entry[_HEADER] != VERSION or not entry["adjacency"].startswith(_ADD_OR_REMOVE):
                raise ValueError(f"version {entry[_HEADER]!r} or adjacency {entry['adjacency']!r} is another")
            self.num_records, self.adjacency = entry["num_records"], entry["adjacency"]
            self._guaranteed = entry[_GUARANTEED]
        self._remember(entry, found)

    def _remember(self, entry: dict[str, Any], hash_: str) -> None:
        self._hashes.append(hash_)
        if _ANSWER in entry:
            self.answers[entry["of"]] = entry[_ANSWER]
        elif _HEADER not in entry:
            self.charges.append(Charge(Event.from_json(entry), entry[_RUN], hash_))

    def _next_hash(self, entry: dict[str, Any]) -> str:
        return sha256((self._hashes[-1] if self._hashes else "").encode() + json.dumps(entry).encode())

    def bind(self, num_records: int | None, adjacency: str | None = None) -> None:
        """Says how many records the data set has, N, and what events are about (`Unit.in_full`).

        Raises:
          InvalidInputError: the ledger belongs to another N, or what is charged on it is about another unit.
        """
        adjacency = adjacency or self.adjacency
        check(
            not self._hashes or adjacency == self.adjacency,
            f"the ledger holds what was asked about another unit ({self.adjacency}), not {adjacency}: give this run a "
            "ledger of its own.",
        )
        self.adjacency = adjacency
        check(
            None in (num_records, self.num_records) or num_records == self.num_records,
            f"the ledger belongs to a data set of {self.num_records} records, not {num_records}: one ledger a data set.",
        )
        self.num_records = num_records if num_records is not None else self.num_records

    def vouch(self, guaranteed: bool) -> None:
        """Says whether what is charged is all that the records are asked, and its noise is secret.

        Raises:
          InvalidInputError: it is not and the ledger is shared, or runs of the other kind charged the ledger.
        """
        check(
            guaranteed or not self.shared,
            "a run without an end-to-end guarantee, or with an insecure seed, would void the statements of all runs on a "
            "shared ledger: give it none (leave out --ledger).",
        )
        check(
            self._guaranteed in (None, guaranteed),
            "the ledger holds runs whose guarantee is of another kind (unprotected, not private or insecurely seeded, or "
            "the opposite): give this run a ledger of its own.",
        )
        self._guaranteed = guaranteed

    @property
    def guaranteed(self) -> bool:
        """Whether its runs' noise is secret, and their events are all that the records were asked."""
        return self._guaranteed is not False

    def refuse_detached(self) -> None:
        """Refuses what would be charged to a copy and be missing in the file."""
        check(
            not self.detached,
            "the model's ledger is a copy of one in a file, on which the charge would be missing: set model.ledger = "
            "Ledger(path) to that file first.",
        )

    def begin(self) -> None:
        """Writes the header, unless it is there. It holds random digits, so that no two ledgers share a chain."""
        if not self._hashes:
            known = {
                "adjacency": self.adjacency,
                "num_records": self.num_records,
                _GUARANTEED: self.guaranteed,
            }
            self._write({_HEADER: VERSION, "id": new_identity(), **known})
            if self.path is not None:
                sync_folder(self.path.parent)

    def charge(self, event: Event) -> None:
        """Appends the event; on disk when this returns. Call it *before* the mechanism's answer is used.

        Raises:
          StorageError: it could not be written; nothing may be asked of the records.
          InvalidInputError: the ledger is a copy, closed, or of another process; its file was touched by anybody else.
        """
        self.refuse_detached()
        self.begin()
        self._write({**event.to_json(), _RUN: self.run})

    def answered(self, charge: Charge, digest: str) -> None:
        """Notes the digest of the charge's stored answer: from here on there is one, and may be no other."""
        self._write({_ANSWER: digest, "of": charge.hash})

    def _refuse_others(self) -> None:
        """Refuses to write where somebody else may have: their charges would be cut off, or stand in another file."""
        check(
            os.getpid() == self._process or not (self.path or self.shared),
            f"ledger {self.path or 'in memory'} belongs to the process that opened it, from which this one was forked: "
            "let one process train, or open a ledger in a file after the other has closed it.",
        )
        if self._file is None or self._failed:
            return
        own = os.fstat(self._file.fileno())
        there = os.stat(self.path) if os.path.exists(self.path) else None
        if there is None or not os.path.samestat(own, there) or own.st_size != self._size:
            raise DamagedFileError(
                f"ledger {self.path} was changed, replaced or removed by something else while this run held it, so it may "
                f"lack charges: {WAY_OUT}."
            )

    def _write(self, entry: dict[str, Any]) -> None:
        hash_ = self._next_hash(entry)
        self._refuse_others()
        if self.path is not None:
            if self._file is None:
                raise InvalidInputError(
                    f"ledger {self.path} was closed: set model.ledger = Ledger(path) and train again."
                )
            # After a failed write the end of the file is unknown; only reading it again tells.
            check(not self._failed, f"ledger {self.path} could not be written before: open it again (--resume).")
            self._failed = True
            with storing(self.path):
                self._file.truncate(self._whole)
            line = self._end + _line({**entry, _HASH: hash_}) + b"\n"
            append(self._file, self.path, line)
            self._whole, self._end, self._failed = self._whole + len(line), b"", False
            self._size = self._whole
        self._remember(entry, hash_)

    @property
    def count(self) -> int:
        """Lines so far."""
        return len(self._hashes)

    def head(self, count: int | None = None) -> str | None:
        """The hash of the line at that count, by default the last; None where there is no such line."""
        count = self.count if count is None else count
        return self._hashes[count - 1] if 0 < count <= self.count else None

    @property
    def events(self) -> tuple[Event, ...]:
        """All that was charged, equal events counted together."""
        return merged(charge.event for charge in self.charges)

    def epsilon(self, delta: float, accountant: AccountantName = "rdp") -> float:
        """ε of everything charged so far."""
        return epsilon(self.events, delta, accountant)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets another process, or another `Ledger` of this one, hold the file. Nothing more can be charged here."""
        if self._file is not None:
            self._file.close()
            self._file = None


def new_identity() -> str:
    """128 random bits, to tell one run or ledger from any other."""
    return os.urandom(16).hex()


def _line(entry: dict[str, Any]) -> bytes:
    return json.dumps(entry).encode()
