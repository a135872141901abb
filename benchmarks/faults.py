"""Faults: trainings that are killed, files that are damaged, disks that are full. Is the budget counted, does the run go on?

    python benchmarks/faults.py            # what is missing in benchmarks/results/faults.json; may be interrupted
    python benchmarks/faults.py --table    # prints what there is

Leave the package's sources alone meanwhile: TensorFlow reads them again when it traces.

A small training on 2,000 MNIST images, through `train.py`, is killed (SIGKILL) at a random one of its steps and writes, a
random moment later; resumed by `--resume` and killed again, until it ends. Three of four such processes run TensorFlow's
functions eagerly: to trace them costs more than so small a training. Other runs get a file damaged before they are resumed,
or a disk that takes no more. Each trial is judged from outside: by what a witness inside the process wrote into a pipe
whenever a mechanism answered and whenever an answer was used, by a reading of the ledger's lines as plain JSON, and by
dp_accounting alone.

`right`: a killed run goes on and ends with the charges of its plan, a whole release, and the ε that it states; what cannot
go on is refused in one line with exit code 2, its ledger untouched. `undercounted`: more was answered than charged, two
answers were used for one charge, or a charge vanished.
"""

from __future__ import annotations

from checkout import ROOT  # before whatever imports TensorFlow: a refusal is one line only without its chatter

# isort: split
import json
import os
import random
import resource
import shutil
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf
from damage import DAMAGES
from fault_processes import RECORDS, TRAINING, refused, resume, run, warm_up
from observer import Observer

from tf_dp2vae import datasets
from tf_dp2vae.commands import parse

RESULTS = ROOT / "benchmarks" / "results" / "faults.json"
_EVENTS = 150
"""About as many lines as a whole training tells its witness; a kill comes after a random one of them."""
_EAGER = 0.75
"""Part of the killed processes that run TensorFlow's functions eagerly."""


def _eagerly() -> None:
    tf.config.run_functions_eagerly(True)


@dataclass(frozen=True)
class Flags:
    """The benchmark of faults.

    Attributes:
      kills: kills to reach in all, over all places.
      damages: damaged files to reach in all, over all kinds.
      seed: of the choice of moments and bytes; the noise of the trainings has none.
      table: only print what there is.
    """

    kills: int = 200
    damages: int = 50
    seed: int = 0
    table: bool = False


class Rows:
    """The table, on disk after every trial."""

    def __init__(self) -> None:
        found = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
        self.rows: dict[str, dict] = {row["kind"]: row for row in found}

    def add(self, kind: str, right: bool, undercounted: bool) -> None:
        """One trial more."""
        row = self.rows.setdefault(kind, {"kind": kind, "tried": 0, "right": 0, "undercounted": 0})
        row["tried"] += 1
        row["right"] += int(right)
        row["undercounted"] += int(undercounted)
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(
            json.dumps({"rows": sorted(self.rows.values(), key=lambda row: row["kind"])}, indent=1) + "\n"
        )
        total = sum(row["tried"] for row in self.rows.values())
        print(f"{total:4d}  {kind:34s} right={right} undercounted={undercounted}", flush=True)

    def tried(self, what: str) -> int:
        """Trials of all kinds that begin with that word."""
        return sum(row["tried"] for kind, row in self.rows.items() if kind.startswith(what))

    def __str__(self) -> str:
        """A Markdown table."""
        lines = ["| kind | tried | right | undercounted |", "|---|---|---|---|"]
        lines += [
            f"| {row['kind']} | {row['tried']} | {row['right']} | {row['undercounted']} |"
            for row in sorted(self.rows.values(), key=lambda row: row["kind"])
        ]
        return "\n".join(lines)


def kill_chains(rows: Rows, folder: Path, data: list[str], kills: int, chance: random.Random) -> None:
    """Trainings killed again and again until they end."""
    while rows.tried("kill") < kills:
        path = Path(tempfile.mkdtemp(dir=folder)) / "run"
        new = [*data, *TRAINING, "--runs", str(path.parent), "--name", "run"]
        observer, places = Observer(path), []
        while True:
            moment, delay = chance.randrange(_EVENTS), chance.expovariate(200)
            seconds = ["--checkpoint-seconds", str(chance.choice((0, 1, 60)))]
            begun = (path / "private" / "config.json").exists()
            if not begun:
                shutil.rmtree(path, ignore_errors=True)
            arguments = [*(["--resume", str(path)] if begun else new), *seconds]
            eagerly = _eagerly if chance.random() < _EAGER else None
            ended = run(arguments, folder, lambda told, m=moment: told.count(b"\n") >= m, delay, eagerly)
            observer.hear(ended.told)
            if ended.code != -signal.SIGKILL:
                break
            whole = not (path / "release").exists() or (path / "release" / "samples.png").exists()
            places.append((ended.place, observer.undercounted(), whole))
            if (path / "release").exists():
                break
        right = (path / "release").exists() and observer.finished_rightly()
        if not right:
            print(f"  wrong: exit code {ended.code}, {ended.error[-2000:]} in {path}", flush=True)
        for place, undercounted, whole in places:
            rows.add(f"kill, {place}", right and whole, undercounted or observer.undercounted())
        if right:
            shutil.rmtree(path.parent)


def killed_run(folder: Path, data: list[str], told: bytes, times: int) -> Observer:
    """A run that was killed once its witness had told that many times, and has no later checkpoint than it must."""
    path = Path(tempfile.mkdtemp(dir=folder)) / "run"
    arguments = [*data, *TRAINING, "--runs", str(path.parent), "--name", "run", "--checkpoint-seconds", "3600"]
    observer = Observer(path)
    observer.hear(run(arguments, folder, lambda content: content.count(told) >= times).told)
    return observer


def damage_trial(kind: str, observer: Observer, other: Path, folder: Path, chance: random.Random) -> tuple[bool, bool]:
    """Damages a copy of the killed run and resumes it; (right, undercounted)."""
    path = Path(tempfile.mkdtemp(dir=folder)) / "run"
    shutil.copytree(observer.path, path)
    pattern, damage = DAMAGES[kind]
    file = chance.choice(sorted((path / "private").glob(pattern)))
    if damage is None:
        shutil.copy(chance.choice(sorted((other / "private").glob(pattern))), file)
    else:
        damage(file, chance)
    ledger = path / "private" / "ledger.jsonl"
    before = ledger.read_bytes() if ledger.exists() else b""
    ended = resume(path, folder)
    if refused(ended):
        right, undercounted = not (path / "release").exists() and (not before or ledger.read_bytes() == before), False
    else:
        mine = Observer(path)
        mine.used.update({charge: set(answers) for charge, answers in observer.used.items()})
        mine.made.update(observer.made)
        mine.hear(ended.told)
        right, undercounted = ended.code == 0 and mine.finished_rightly(), mine.undercounted()
    if not right:
        print(f"  wrong: {kind}, exit code {ended.code}, {ended.error[-2000:]} in {path}", flush=True)
    else:
        shutil.rmtree(path.parent)
    return right, undercounted


def damages(rows: Rows, folder: Path, data: list[str], count: int, chance: random.Random) -> None:
    """Every kind of damage in turn, to runs killed in the private phase and in pre-training."""
    kinds = sorted(DAMAGES)
    if rows.tried("damage") >= count:
        return
    states = [killed_run(folder, data, b"made\tclipped", times) for times in (4, 7)]
    states += [killed_run(folder, data, b"event", times) for times in (20, 22)]
    while rows.tried("damage") < count:
        kind = min(kinds, key=lambda kind: rows.rows.get(f"damage: {kind}", {"tried": 0})["tried"])
        pair = chance.choice((states[:2], states[2:]))
        observer, other = chance.sample(pair, 2)
        rows.add(f"damage: {kind}", *damage_trial(kind, observer, other.path, folder, chance))


def storage_trial(kind: str, folder: Path, data: list[str], chance: random.Random) -> tuple[bool, bool]:
    """A disk that takes no more, then room again; (right, undercounted)."""
    if kind == "storage full":
        path = Path(tempfile.mkdtemp(dir=folder)) / "run"
        limit = round(10 ** chance.uniform(2.5, 5))
        arguments = [*data, *TRAINING, "--runs", str(path.parent), "--name", "run"]
        observer = Observer(path)
        ended = run(arguments, folder, before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    else:
        observer = killed_run(folder, data, b"made\tclipped", 3)
        path = observer.path
        ended = resume(path, folder, before=lambda: _only_reading(path))
    observer.hear(ended.told)
    undercounted, right = observer.undercounted(), refused(ended) or ended.code == 0
    if path.exists() and not (path / "release").exists():
        again = resume(path, folder)
        observer.hear(again.told)
        ended = again if right else ended
    if path.exists():
        right, undercounted = right and observer.finished_rightly(), undercounted or observer.undercounted()
    if not right:
        print(f"  wrong: {kind}, exit code {ended.code}, {ended.error[-2000:]} in {path}", flush=True)
    return right, undercounted


def _only_reading(path: Path) -> None:
    """Becomes a user who may read the run but not write to it."""
    os.chmod(path.parent, 0o755)
    for parent, _, files in os.walk(path):
        os.chmod(parent, 0o755)
        for file in files:
            os.chmod(Path(parent) / file, 0o644)
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)


def storage(rows: Rows, folder: Path, data: list[str], count: int, chance: random.Random) -> None:
    """Full and read-only disks in turn."""
    while rows.tried("storage") < count:
        kind = ("storage full", "storage read-only")[rows.tried("storage") % 2]
        rows.add(kind, *storage_trial(kind, folder, data, chance))


def main() -> None:
    """The benchmark."""
    flags = parse(Flags, __doc__)
    rows = Rows()
    if not flags.table:
        warm_up()
        chance = random.Random(f"{flags.seed} {sorted(rows.rows.items())}")
        with tempfile.TemporaryDirectory(prefix="faults-") as name:
            folder = Path(name)
            folder.chmod(0o755)
            data = ["--data", str(_slice_of_mnist(folder))]
            damages(rows, folder, data, flags.damages, chance)
            storage(rows, folder, data, flags.damages // 5, chance)
            kill_chains(rows, folder, data, flags.kills, chance)
    print(rows)


def _slice_of_mnist(folder: Path) -> Path:
    records = datasets.load("mnist").train
    with records.opened() as (images, labels):
        np.savez(folder / "mnist.npz", x_train=images[:RECORDS], y_train=labels[:RECORDS])
    return folder / "mnist.npz"


if __name__ == "__main__":
    main()
