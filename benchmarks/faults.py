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
import select
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import dp_accounting
import numpy as np
import tensorflow as tf
from dp_accounting import rdp
from witness import Witness

import train
from tf_dp2vae import accounting, datasets
from tf_dp2vae.commands import parse
from tf_dp2vae.flags import TrainFlags

RESULTS = ROOT / "benchmarks" / "results" / "faults.json"
STEPS, ROUNDS, RECORDS = 12, 3, 2000
TRAINING = (
    f"--steps {STEPS} --rounds {ROUNDS} --batch-size 64 --latent-dim 2 --width 2 --physical-batch-size 128 "
    "--pretrain-steps 8 --sleep-steps 2 --refine-steps 2 --epsilon 2"
).split()
_EVENTS = 150
"""About as many lines as a whole training tells its witness; a kill comes after a random one of them."""


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


# --- One process ----------------------------------------------------------------------------------------------------------


@dataclass
class Ended:
    """How a process ended and what its witness said."""

    code: int
    error: str
    told: list[str] = field(default_factory=list)

    @property
    def place(self) -> str:
        """Where the run was."""
        return ([line[3:] for line in self.told if line.startswith("at ")] or ["start"])[-1]


def run(
    arguments: list[str],
    folder: Path,
    kill_when: Callable[[bytes], bool] | None = None,
    delay: float = 0.0,
    before: Callable[[], None] | None = None,
) -> Ended:
    """`train.py` in a process of its own, forked so that TensorFlow is imported once.

    Args:
      arguments: of train.py.
      folder: where its output goes.
      kill_when: kills it once this is true of what its witness told; None lets it end.
      delay: seconds between the event and the kill.
      before: done in the process before it begins.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _become_training(arguments, folder, writing, before)
    os.close(writing)
    told = _listen(reading, child, kill_when, delay)
    os.close(reading)
    _, status = os.waitpid(child, 0)
    return Ended(os.waitstatus_to_exitcode(status), (folder / "stderr").read_text(errors="replace"), told)


def _become_training(arguments: list[str], folder: Path, pipe: int, before: Callable[[], None] | None) -> None:
    code = 1
    try:
        for stream, name in ((1, "stdout"), (2, "stderr")):
            opened = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            os.dup2(opened, stream)
        Witness(pipe).install()
        if before is not None:
            before()
        sys.argv = ["train.py", *arguments]
        train.main()
        code = 0
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _listen(pipe: int, child: int, kill_when: Callable[[bytes], bool] | None, delay: float) -> list[str]:
    content, killed = b"", False
    while True:
        if not killed and kill_when is not None and kill_when(content):
            time.sleep(delay)
            os.kill(child, signal.SIGKILL)
            killed = True
        select.select([pipe], [], [])
        part = os.read(pipe, 65536)
        if not part:
            return content.decode().splitlines()
        content += part


def warm_up() -> None:
    """Does the costly sums over events once, before the trainings are forked; none of them starts TensorFlow's runtime."""
    calibrate, known = accounting.plan, {}

    def plan(*arguments):
        key = repr(arguments)
        if key not in known:
            known[key] = calibrate(*arguments)
        return known[key]

    accounting.plan = plan
    flags = TrainFlags()
    shares = {
        accounting.CLASS_STATISTICS: flags.statistics_share,
        accounting.DREAM_MOMENTS: flags.moments_share,
        accounting.LATENT_MOMENTS: flags.prior_share,
        accounting.FEATURE_MEANS: flags.refine_share,
    }
    planned = plan(accounting.Privacy(epsilon=2.0), 64 / RECORDS, STEPS, shares, ())
    released = list(planned.releases)
    for before in (
        [],
        released[:1],
        released[:2],
        *([*released[:2], replace(planned.step, count=k)] for k in range(1, STEPS + 1)),
    ):
        accounting.epsilon(before, 1e-5)
    for accountant in accounting.ACCOUNTANTS:
        accounting.epsilon([*released[:2], replace(planned.step, count=STEPS), *released[2:]], 1e-5, accountant)


# --- Judging from outside -------------------------------------------------------------------------------------------------


class Judge:
    """What one run's processes told, added up, and the ledger read as plain lines of JSON."""

    def __init__(self, path: Path):
        self.path = path
        self.made: Counter[str] = Counter()
        self.used: dict[str, set[str]] = defaultdict(set)
        self._charged = 0

    def hear(self, told: list[str]) -> None:
        """Adds what a process told."""
        for line in told:
            word, *rest = line.split("\t")
            if word == "made":
                self.made[rest[0]] += 1
            elif word == "used":
                self.used[rest[0]].add(rest[1])

    def charges(self) -> list[dict]:
        """The ledger's whole lines that charge something."""
        file = self.path / "private" / "ledger.jsonl"
        lines = file.read_bytes().split(b"\n") if file.exists() else []
        entries = [json.loads(line) for line in lines if line.endswith(b"}")]
        return [entry for entry in entries if "noise_multiplier" in entry]

    def undercounted(self) -> bool:
        """More answered than charged, two answers for one charge, an answer without one, or a charge that vanished."""
        charges = self.charges()
        steps = sum(charge["mechanism"] == "clipped gradient sum" for charge in charges)
        vanished, self._charged = len(charges) < self._charged, max(self._charged, len(charges))
        names = {charge["hash"] for charge in charges}
        return (
            vanished
            or self.made["clipped gradient sum"] > steps
            or any(len(answers) > 1 or charge not in names for charge, answers in self.used.items())
        )

    def finished_rightly(self) -> bool:
        """The charges of one plan, a whole release that states them, ε within the target by dp_accounting alone."""
        release = self.path / "release"
        if not all((release / name).exists() for name in ("sampler", "privacy.json", "privacy.md", "samples.png")):
            return False
        stated = json.loads((release / "privacy.json").read_text())
        charged = Counter(charge["mechanism"] for charge in self.charges())
        judge = rdp.RdpAccountant()
        for charge in self.charges():
            event: dp_accounting.DpEvent = dp_accounting.GaussianDpEvent(charge["noise_multiplier"])
            judge.compose(dp_accounting.PoissonSampledDpEvent(charge["sampling_rate"], event), charge["count"])
        releases = ("class statistics", "dream moments", "latent moments", "feature means")
        planned = {**dict.fromkeys(releases, 1), "clipped gradient sum": STEPS}
        return (
            charged == planned
            and {event["mechanism"]: event["count"] for event in stated["events"]} == planned
            and judge.get_epsilon(stated["delta"]) <= 2 * (1 + 5e-3)
            and abs(judge.get_epsilon(stated["delta"]) - stated["epsilon"]) < 1e-2
        )


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


_EAGER = 0.75
"""Part of the killed processes that run TensorFlow's functions eagerly."""


def _eagerly() -> None:
    tf.config.run_functions_eagerly(True)


# --- Trials ---------------------------------------------------------------------------------------------------------------


def refused(ended: Ended) -> bool:
    """One line, exit code 2."""
    lines = [line for line in ended.error.splitlines() if line.strip()]
    return ended.code == 2 and len(lines) == 1 and lines[0].startswith("train.py: ")


def resume(path: Path, folder: Path, **how) -> Ended:
    """`train.py --resume` of the run."""
    return run(["--resume", str(path)], folder, **how)


def kill_chains(rows: Rows, folder: Path, data: list[str], kills: int, chance: random.Random) -> None:
    """Trainings killed again and again until they end."""
    while rows.tried("kill") < kills:
        path = Path(tempfile.mkdtemp(dir=folder)) / "run"
        new = [*data, *TRAINING, "--runs", str(path.parent), "--name", "run"]
        judge, places = Judge(path), []
        while True:
            moment, delay = chance.randrange(_EVENTS), chance.expovariate(200)
            seconds = ["--checkpoint-seconds", str(chance.choice((0, 1, 60)))]
            begun = (path / "private" / "config.json").exists()
            if not begun:
                shutil.rmtree(path, ignore_errors=True)
            arguments = [*(["--resume", str(path)] if begun else new), *seconds]
            eagerly = _eagerly if chance.random() < _EAGER else None
            ended = run(arguments, folder, lambda told, m=moment: told.count(b"\n") >= m, delay, eagerly)
            judge.hear(ended.told)
            if ended.code != -signal.SIGKILL:
                break
            whole = not (path / "release").exists() or (path / "release" / "samples.png").exists()
            places.append((ended.place, judge.undercounted(), whole))
            if (path / "release").exists():
                break
        right = (path / "release").exists() and judge.finished_rightly()
        if not right:
            print(f"  wrong: exit code {ended.code}, {ended.error[-2000:]} in {path}", flush=True)
        for place, undercounted, whole in places:
            rows.add(f"kill, {place}", right and whole, undercounted or judge.undercounted())
        if right:
            shutil.rmtree(path.parent)


def killed_run(folder: Path, data: list[str], told: bytes, times: int) -> Judge:
    """A run that was killed once its witness had told that many times, and has no later checkpoint than it must."""
    path = Path(tempfile.mkdtemp(dir=folder)) / "run"
    arguments = [*data, *TRAINING, "--runs", str(path.parent), "--name", "run", "--checkpoint-seconds", "3600"]
    judge = Judge(path)
    judge.hear(run(arguments, folder, lambda content: content.count(told) >= times).told)
    return judge


def flip(file: Path, chance: random.Random) -> None:
    """One bit."""
    content = bytearray(file.read_bytes())
    place = chance.randrange(len(content))
    content[place] ^= 1 << chance.randrange(8)
    file.write_bytes(bytes(content))


def cut(file: Path, chance: random.Random) -> None:
    """The end is missing."""
    content = file.read_bytes()
    file.write_bytes(content[: chance.randrange(len(content))])


def remove(file: Path, _: random.Random) -> None:
    """The file is gone."""
    file.unlink()


def drop_line(file: Path, chance: random.Random) -> None:
    """A line is gone, any but those that nobody has seen an answer to."""
    lines = file.read_bytes().splitlines(keepends=True)
    del lines[chance.randrange(len(lines) - 3)]
    file.write_bytes(b"".join(lines))


def swap_lines(file: Path, chance: random.Random) -> None:
    """Two lines change places."""
    lines = file.read_bytes().splitlines(keepends=True)
    first, second = chance.sample(range(len(lines) - 1), 2)
    lines[first], lines[second] = lines[second], lines[first]
    file.write_bytes(b"".join(lines))


def more_noise(file: Path, chance: random.Random) -> None:
    """A charge is made cheaper, and the hash of its line mended, as a cheat would."""
    from tf_dp2vae.ledger import _line, sha256  # the cheat knows the format

    lines = file.read_bytes().splitlines()
    place = chance.choice([number for number, line in enumerate(lines[:-2]) if b"noise_multiplier" in line])
    entry, before = json.loads(lines[place]), json.loads(lines[place - 1])["hash"]
    entry.pop("hash")
    entry["noise_multiplier"] *= 2
    lines[place] = _line({**entry, "hash": sha256(before.encode() + json.dumps(entry).encode())})
    file.write_bytes(b"\n".join(lines) + b"\n")


_FILES = {
    "ledger": "ledger.jsonl",
    "checkpoint": "checkpoints/*.checkpoint",
    "answer": "answers/*.answer",
    "config": "config.json",
}
DAMAGES: dict[str, tuple[str, Callable[[Path, random.Random], None] | None]] = {
    **{f"{what}, bit flip": (pattern, flip) for what, pattern in _FILES.items()},
    **{f"{what}, truncated": (pattern, cut) for what, pattern in _FILES.items()},
    **{f"{what}, deleted": (pattern, remove) for what, pattern in _FILES.items()},
    **{f"{what}, of another run": (pattern, None) for what, pattern in _FILES.items() if what != "config"},
    "ledger, line dropped": (_FILES["ledger"], drop_line),
    "ledger, lines swapped": (_FILES["ledger"], swap_lines),
    "ledger, charge made cheaper": (_FILES["ledger"], more_noise),
}
"""What is done to which file of a run's private folder; None: it is exchanged for another run's."""


def damage_trial(kind: str, judge: Judge, other: Path, folder: Path, chance: random.Random) -> tuple[bool, bool]:
    """Damages a copy of the killed run and resumes it; (right, undercounted)."""
    path = Path(tempfile.mkdtemp(dir=folder)) / "run"
    shutil.copytree(judge.path, path)
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
        mine = Judge(path)
        mine.used.update({charge: set(answers) for charge, answers in judge.used.items()})
        mine.made.update(judge.made)
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
        judge, other = chance.sample(pair, 2)
        rows.add(f"damage: {kind}", *damage_trial(kind, judge, other.path, folder, chance))


def storage_trial(kind: str, folder: Path, data: list[str], chance: random.Random) -> tuple[bool, bool]:
    """A disk that takes no more, then room again; (right, undercounted)."""
    if kind == "storage full":
        path = Path(tempfile.mkdtemp(dir=folder)) / "run"
        limit = round(10 ** chance.uniform(2.5, 5))
        arguments = [*data, *TRAINING, "--runs", str(path.parent), "--name", "run"]
        judge = Judge(path)
        ended = run(arguments, folder, before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    else:
        judge = killed_run(folder, data, b"made\tclipped", 3)
        path = judge.path
        ended = resume(path, folder, before=lambda: _only_reading(path))
    judge.hear(ended.told)
    undercounted, right = judge.undercounted(), refused(ended) or ended.code == 0
    if path.exists() and not (path / "release").exists():
        again = resume(path, folder)
        judge.hear(again.told)
        ended = again if right else ended
    if path.exists():
        right, undercounted = right and judge.finished_rightly(), undercounted or judge.undercounted()
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
