"""Bad input of every kind, thousands of times: each case is refused in one line, or used.

    python benchmarks/fuzz.py                  # all kinds; keeps rows in benchmarks/results/fuzz.json, prints them
    python benchmarks/fuzz.py --kinds npz --cases 50 --seed 7

A case is wrong when anything but a refusal comes out (a traceback, two lines, no way out), when a refused run leaves
something behind, when a pickle is opened, or when it takes more than a minute. Cases run in one process, but for damaged
SavedModels: those run TensorFlow's own readers, so they get a process that may die without taking the rest with it.
"""

from __future__ import annotations

import copy
import json
import multiprocessing
import random
import signal
import tempfile
import traceback
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import checkout  # noqa: F401 - makes the package importable from here

import tf_dp2vae.quiet  # noqa: F401 - before whatever imports TensorFlow

# isort: split
from bad_input import KINDS
from fuzz_world import ACCEPTED, REFUSED, World
from odd_values import WrongError

from tf_dp2vae.commands import parse
from tf_dp2vae.validation import InvalidInputError

SECONDS = 60
RESULTS = Path(__file__).parent / "results" / "fuzz.json"
CASES = {
    "flags": 600,
    "flags of evaluate": 150,
    "npz": 500,
    "image files": 150,
    "labels and ids": 300,
    "configuration": 150,
    "privacy.json": 250,
    "checksums": 80,
    "ledger": 200,
    "checkpoint": 60,
    "SavedModel": 40,
}


_MAY_DIE = ("SavedModel",)


def outcome(kind: str, seed: int, world: World) -> str:
    """`refused`, `accepted`, or what went wrong."""

    def too_long(*_: Any) -> None:
        raise WrongError(f"took more than {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(SECONDS)
    try:
        return KINDS[kind](world, random.Random(f"{kind} {seed}"))
    except InvalidInputError as refusal:
        text = str(refusal)
        one_sentence = "\n" not in text and len(text) > 20 and len(text) < 20_000
        return REFUSED if one_sentence else f"no sentence: {text[:300]}"
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever else comes out is what is being looked for
        return "".join(traceback.format_exception_only(error)).strip()[:300] + " @ " + _where(error)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "tf_dp2vae" in frame.filename] or frames
    return f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"


class Apart:
    """A process that runs cases one after the other; where it dies or hangs, that is an outcome, and another takes over.

    It is started afresh, not forked: TensorFlow's threads do not survive a fork.
    """

    def __init__(self, world: World):
        self._world = copy.copy(world)
        self._world.release = None  # type: ignore[assignment]  # a SavedModel cannot be sent
        self._child: Any = None

    def outcome(self, kind: str, seed: int) -> str:
        """As `outcome` below says."""
        if self._child is None:
            context = multiprocessing.get_context("spawn")
            self._pipe, there = context.Pipe()
            self._child = context.Process(target=_serve, args=(there, self._world), daemon=True)
            self._child.start()
            there.close()
        self._pipe.send((kind, seed))
        try:
            if self._pipe.poll(4 * SECONDS):
                return self._pipe.recv()
            result = "took too long"
        except EOFError:
            result = "the process died"
        self._child.kill()
        self._child = None
        return result


def _serve(pipe: Any, world: World) -> None:
    with suppress(EOFError):  # nobody asks any more
        while True:
            pipe.send(outcome(*pipe.recv(), world=world))


def fuzz(kind: str, cases: int, seed: int, world: World) -> tuple[Counter[str], list[str]]:
    """Runs the cases of a kind; their outcomes, and a line for each that was wrong."""
    counts: Counter[str] = Counter()
    wrong, apart = [], Apart(world)
    for case in range(seed, seed + cases):
        result = apart.outcome(kind, case) if kind in _MAY_DIE else outcome(kind, case, world)
        counts[result if result in (REFUSED, ACCEPTED) else "wrong"] += 1
        if result not in (REFUSED, ACCEPTED):
            wrong.append(f"{kind}, seed {case}: {result}")
    return counts, wrong


def keep(row: dict[str, Any]) -> None:
    """Puts the row in place of an earlier one of its kind."""
    rows = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else []
    others = {entry["kind"]: entry for entry in rows if entry["kind"] in KINDS} | {row["kind"]: row}
    RESULTS.write_text(
        json.dumps([others[kind] for kind in KINDS if kind in others], indent=1) + "\n", encoding="utf-8"
    )


@dataclass(frozen=True)
class Flags:
    """Fuzzing.

    Attributes:
      kinds: of bad input, separated by commas; by default all.
      cases: of each kind; by default as many as CASES says.
      seed: of the first case; case n of a kind is always the same.
    """

    kinds: str = ",".join(KINDS)
    cases: int | None = None
    seed: int = 0


def main() -> None:
    flags = parse(Flags, __doc__)
    rows = []
    print(f"{'kind':>18} {'tried':>6} {'refused':>8} {'accepted':>9} {'wrong':>6}")
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        for kind in flags.kinds.split(","):
            counts, wrong = fuzz(kind, flags.cases or CASES[kind], flags.seed, world)
            row = {"kind": kind, "tried": sum(counts.values()), **{n: counts[n] for n in (REFUSED, ACCEPTED, "wrong")}}
            rows.append(row)
            print(f"{kind:>18} {row['tried']:>6} {row[REFUSED]:>8} {row[ACCEPTED]:>9} {row['wrong']:>6}", flush=True)
            print(*(f"    {line}" for line in wrong), sep="\n", end="\n" if wrong else "", flush=True)
            if flags.cases is None:
                keep(row)
    print(f"{'together':>18} {sum(row['tried'] for row in rows):>6} cases, {sum(row['wrong'] for row in rows)} wrong")


if __name__ == "__main__":
    main()
