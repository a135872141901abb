"""Bad input of every kind, thousands of times: each case is refused in one line, or used.

    python benchmarks/fuzz.py                  # all kinds; keeps rows in benchmarks/results/fuzz.json, prints them
    python benchmarks/fuzz.py --kinds npz --cases 50 --seed 7

A case is wrong when anything but a refusal comes out (a traceback, two lines, no way out), when a refused run leaves
something behind, when a pickle is opened, or when it takes more than a minute. Cases run in one process, but for damaged
SavedModels: those run TensorFlow's own readers, so they get a process that may die without taking the rest with it.
"""

from __future__ import annotations

import copy
import io
import json
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import struct
import sys
import tempfile
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import checkout  # noqa: F401 - makes the package importable from here
import numpy as np

import tf_dp2vae.quiet  # noqa: F401 - before whatever imports TensorFlow

# isort: split
import train
from tf_dp2vae import datasets
from tf_dp2vae.checksums import write_checksums
from tf_dp2vae.commands import parse
from tf_dp2vae.evaluation.real import real_images
from tf_dp2vae.evaluation.release import Release, read_release
from tf_dp2vae.ledger import Ledger
from tf_dp2vae.model import DP2VAE
from tf_dp2vae.saved import load
from tf_dp2vae.validation import InvalidInputError

SECONDS = 60
RESULTS = Path(__file__).parent / "results" / "fuzz.json"
REFUSED, ACCEPTED = "refused", "accepted"
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


class WrongError(Exception):
    """A case that came out as none may."""


class _AcceptedError(BaseException):
    """Stands for the training that would begin now."""


# --- Damage -------------------------------------------------------------------------------------------------------------


def damaged(content: bytes, chance: random.Random) -> bytes:
    """The content cut, flipped, overwritten, doubled, emptied or replaced."""
    data = bytearray(content)
    way = chance.randrange(7)
    if way == 0 and data:
        return bytes(data[: chance.randrange(len(data))])
    if way in (1, 2) and data:
        for _ in range(chance.choice([1, 1, 3, 30])):
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        return bytes(data)
    if way == 3 and data:
        start, length = chance.randrange(len(data)), chance.randrange(1, 64)
        data[start : start + length] = chance.randbytes(length)
        return bytes(data)
    if way == 4:
        start = chance.randrange(len(data) + 1)
        return bytes(data[:start] + data[start // 2 :])
    if way == 5:
        return chance.randbytes(chance.randrange(300))
    return chance.choice([b"", b"\0" * 100, b"PK\x03\x04", b"\x80\x04K\x01.", content + content, "ÿ☃".encode()])


ODD = [
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        2**63,
        -(2**63),
        10**400,
        0.5,
        -0.0,
        1e308,
        float("nan"),
        float("inf"),
        float("-inf"),
    ),
    *("", " ", "0", "-1", "nan", "ε", "☃" * 50, "../..", "/", "a" * 10_000, "\ud800", "null", "\n", "--help", [], {}),
    *([[]], {"a": {}}, [1, 2, 3]),
]
"""Values that a field may hold by mistake."""


def changed(entry: Any, chance: random.Random) -> Any:
    """The JSON value with one of its parts replaced, dropped or renamed."""
    if isinstance(entry, dict) and entry and chance.random() < 0.9:
        key = chance.choice(sorted(entry))
        if isinstance(entry[key], (dict, list)) and entry[key] and chance.random() < 0.5:
            return {**entry, key: changed(entry[key], chance)}
        rest = {name: value for name, value in entry.items() if name != key}
        return chance.choice([rest, {**entry, key: chance.choice(ODD)}, {**rest, key + "_": entry[key]}])
    if isinstance(entry, list) and entry and chance.random() < 0.9:
        place = chance.randrange(len(entry))
        return [*entry[:place], changed(entry[place], chance), *entry[place + 1 :]]
    return chance.choice(ODD)


def as_json(value: Any, chance: random.Random) -> bytes:
    """The value as a file that calls itself JSON."""
    way = chance.random()
    if way < 0.02:
        return b"[" * 100_000
    text = json.dumps(value, ensure_ascii=chance.random() < 0.5).encode("utf-8", "surrogatepass")
    return damaged(text, chance) if way < 0.3 else text


def odd_array(chance: random.Random, num: int, shape: tuple[int, ...]) -> np.ndarray:
    """An array of some type, shape and content."""
    draw = np.random.default_rng(chance.randrange(2**32))
    shapes = [
        (num, *shape),
        (num, *shape, 1),
        (num,),
        (),
        (0, *shape),
        (num, 0, 0),
        (1, num, *shape),
        (num, *shape, 2, 2),
    ]
    kind = chance.choice(["u1", "i4", "f4", "f8", "f2", "i8", "u8", "?", "c16", "U4", "S3", "O", "M8[s]", "V6"])
    chosen = chance.choice(shapes)
    if kind == "O":
        objects = np.empty(num, object)
        objects[:] = [Trap()] * num
        return objects
    values = draw.integers(0, 256, chosen)
    array = values.astype("U4").astype(kind) if kind[0] in "US" else values.astype("i8").view("V8").astype("V6")
    if kind[0] not in "USV":
        array = values.astype("M8[s]") if kind[0] == "M" else values.astype(kind)
    if kind in ("f4", "f8", "f2") and array.size:
        scale = chance.choice([1 / 255, 1.0, -1.0, 1e30])
        array = (array * np.float64(scale)).astype(kind) if kind != "f2" else array / np.float16(255)
        if chance.random() < 0.3:
            array.flat[0] = chance.choice([np.nan, np.inf, -np.inf, -1e-9, 1 + 1e-6])
    return array


class Trap:
    """An object whose unpickling is the thing that must never happen."""

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return _sprung, ()


def _sprung() -> None:
    raise WrongError("a pickle was opened")


# --- What is well-formed --------------------------------------------------------------------------------------------------


class World:
    """A small valid file of each kind, to be damaged."""

    def __init__(self, folder: Path):
        """Trains the smallest run there is."""
        self.folder = folder
        draw = np.random.default_rng(0)
        self.arrays = {
            "x_train": draw.integers(0, 256, (24, 8, 8), dtype=np.uint8),
            "y_train": (np.arange(24) % 3).astype(np.int32),
            "x_test": draw.integers(0, 256, (6, 8, 8), dtype=np.uint8),
            "y_test": (np.arange(6) % 3).astype(np.int32),
            "patient": np.arange(24) // 2,
        }
        self.data = folder / "data.npz"
        np.savez_compressed(self.data, **self.arrays)
        where = ["--data", str(self.data), "--num-classes", "3", "--runs", str(folder / "runs"), "--name", "run"]
        small = (
            "--steps 1 --rounds 1 --batch-size 4 --latent-dim 2 --width 1 --physical-batch-size 8 --pretrain-steps 1"
        )
        with (
            called("train.py", *where, *small.split(), "--sleep-steps", "0", "--refine-steps", "1"),
            redirect_stdout(io.StringIO()),
        ):
            train.main()
        self.run = folder / "runs" / "run"
        self.release = read_release(self.run)

    def file(self, name: str, content: bytes) -> Path:
        """A file of that content, in a folder of its own."""
        path = Path(tempfile.mkdtemp(dir=self.folder)) / name
        path.write_bytes(content)
        return path

    def copy_of_run(self) -> Path:
        """A run to be damaged."""
        return Path(shutil.copytree(self.run, Path(tempfile.mkdtemp(dir=self.folder)) / "run"))


@contextmanager
def called(*arguments: str) -> Iterator[None]:
    """As if the program were called with these arguments."""
    before, sys.argv = sys.argv, list(arguments)
    try:
        yield
    finally:
        sys.argv = before


# --- Kinds ----------------------------------------------------------------------------------------------------------------

WORDS = [
    *(
        "0",
        "1",
        "-1",
        "2.5",
        "nan",
        "inf",
        "-inf",
        "1e400",
        "10" * 200,
        "",
        " ",
        "ε",
        "☃☃",
        "dreams",
        "None",
        "true",
        "--",
        "-",
    ),
    *(
        "1e-5",
        "0x10",
        "1_000",
        "١٢",
        "a/b",
        "..",
        "/dev/null",
        "/proc/self/mem",
        "~",
        "$HOME",
        "a" * 300,
        "x\ny",
        "'",
        '"',
    ),
    *("99999999999", "65537", "4097", "[]", "{}", "\udcff"),
]


def flags(world: World, chance: random.Random) -> str:
    """train.py called with one to three flags of odd values, up to where training would begin."""
    names = [name for name in _flag_names() if name != "--help"]
    chosen = [(chance.choice(names), chance.choice(WORDS)) for _ in range(chance.choice([1, 1, 2, 3]))]
    odd = [word for name, value in chosen for word in chance.choice([(name, value), (f"{name}={value}",), (name,)])]
    root = Path(tempfile.mkdtemp(dir=world.folder))
    base = ["--data", str(world.data), "--num-classes", "3", "--batch-size", "4", "--runs", str(root / "runs")]

    def stop(*_: Any, **__: Any) -> None:
        raise _AcceptedError

    fit, DP2VAE.fit = DP2VAE.fit, stop  # type: ignore[method-assign]
    try:
        with called("train.py", *base, *odd), _as_program(root):
            train.main()
    except _AcceptedError:
        return ACCEPTED
    finally:
        DP2VAE.fit = fit  # type: ignore[method-assign]
    return ACCEPTED


def evaluate_flags(world: World, chance: random.Random) -> str:
    """evaluate.py called with odd flags, up to where it would sample."""
    import evaluate

    names = ["--parts", "--samples", "--fid-samples", "--inception-weights", "--dataset", "--data", "--num-classes"]
    names += ["--epochs", "--seed", "--release-uncovered-numbers", "--nonsense"]
    odd = [word for _ in range(chance.choice([1, 2])) for word in (chance.choice(names), chance.choice(WORDS))]
    run = chance.choice([str(world.run), str(world.run), str(world.folder / "nowhere"), chance.choice(WORDS)])

    def stop(*_: Any, **__: Any) -> None:
        raise _AcceptedError

    samples, Release.samples = Release.samples, stop  # type: ignore[method-assign]
    try:
        with called("evaluate.py", run, *odd), _as_program(Path(tempfile.mkdtemp(dir=world.folder))):
            evaluate.main()
    except _AcceptedError:
        return ACCEPTED
    finally:
        Release.samples = samples  # type: ignore[method-assign]
    return ACCEPTED


def _flag_names() -> list[str]:
    text = io.StringIO()
    with called("train.py", "--help"), redirect_stdout(text), suppress(SystemExit):
        train.main()
    return sorted(
        {word for word in text.getvalue().replace(",", " ").split() if word.startswith("--") and len(word) > 3}
    )


@contextmanager
def chdir(folder: Path) -> Iterator[None]:
    """Relative paths among the values end up there."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextmanager
def _as_program(root: Path) -> Iterator[None]:
    """Turns exit code 2 with one line into a refusal, and looks whether anything was left behind."""
    out, error = io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(error), chdir(root):
            yield
    except SystemExit as ended:
        if ended.code == 0:  # --help among the values
            return
        lines = error.getvalue().strip().splitlines()
        if ended.code != 2 or len(lines) != 1:
            raise WrongError(f"exit code {ended.code}, {len(lines)} lines: {error.getvalue()[:500]}") from ended
        if list(root.iterdir()):
            raise WrongError(f"left behind: {[str(path) for path in root.rglob('*')]}") from ended
        raise InvalidInputError(lines[0]) from ended


def npz(world: World, chance: random.Random) -> str:
    """A damaged archive, or a sound one of odd arrays, as --data."""
    if chance.random() < 0.4:
        content = damaged(world.data.read_bytes(), chance)
    else:
        arrays = dict(world.arrays)
        for name in chance.sample(sorted(arrays), chance.choice([1, 1, 2])):
            arrays[name] = odd_array(chance, 24, (8, 8))
            if chance.random() < 0.1:
                del arrays[name]
        file = io.BytesIO()
        np.savez_compressed(file, **arrays)
        content = file.getvalue()
        if chance.random() < 0.25:
            content = _odd_archive(chance)
    datasets.load("", world.file("data.npz", content), 3)
    return ACCEPTED


def _odd_archive(chance: random.Random) -> bytes:
    """Zip bombs, lying headers, members that are no arrays, duplicate and absurd names."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        way = chance.randrange(5)
        if way == 0:  # 64 MB of zeros in 64 KB, and a header that claims a petabyte of them
            shape = chance.choice([(2**50,), (2**20, 8, 8), (2**63 - 1, 2), (-1, 8, 8)])
            archive.writestr("x_train.npy", _npy_header("|u1", shape) + bytes(2**16 * chance.choice([1, 1000])))
        elif way == 1:
            archive.writestr("x_train.npy", chance.randbytes(500))
        elif way == 2:
            archive.writestr("x_train.npy", pickle.dumps(Trap()))
        elif way == 3:
            archive.writestr("../../x_train.npy", b"")
            archive.writestr("x_train.npy", b"\x93NUMPY\x09\x09")
        else:
            archive.writestr("x_train.npy", _npy_header("|O", (3,)) + pickle.dumps([Trap()] * 3))
    content = bytearray(file.getvalue())
    if way == 0 and chance.random() < 0.5:  # the directory lies about the size as well
        place = content.rfind(b"PK\x01\x02")
        content[place + 24 : place + 28] = struct.pack("<I", chance.choice([0, 10, 2**32 - 2]))
    return bytes(content)


def _npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def image_files(world: World, chance: random.Random) -> str:
    """A picture, a folder, a link or a device where an .npz belongs."""
    import matplotlib.image

    folder = Path(tempfile.mkdtemp(dir=world.folder))
    file = folder / chance.choice(["a.png", "a.npz", "ä☃.npz", "a.jpg", "a b.npz"])
    way = chance.randrange(6)
    if way == 0:
        picture = io.BytesIO()
        matplotlib.image.imsave(picture, np.zeros((8, 8)), format="png")
        file.write_bytes(damaged(picture.getvalue(), chance) if chance.random() < 0.5 else picture.getvalue())
    elif way == 1:
        file.mkdir()
    elif way == 2:
        file.symlink_to(
            chance.choice([world.data, file, folder / "nowhere", folder, Path("/dev/zero"), Path("/dev/full")])
        )
    elif way == 3:
        file = chance.choice(
            [Path("/dev/zero"), Path("/proc/self/mem"), Path("a" * 5000), Path("."), Path("\ud800.npz")]
        )
    elif way == 4:
        header = struct.pack(">IIII", 0x00000803, *(chance.choice([0, 28, 2**32 - 1]) for _ in range(3)))
        file.write_bytes(header + chance.randbytes(1000))
    else:
        file.write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", 2**31 - 1, 2**31 - 1) + b"\x08\0\0\0\0")
    datasets.load("", file, 3)
    return ACCEPTED


def labels_and_ids(world: World, chance: random.Random) -> str:
    """Odd labels, odd ids of persons, odd numbers of classes and of records a person."""
    arrays = dict(world.arrays)
    arrays[chance.choice(["y_train", "patient", "y_test"])] = odd_array(chance, chance.choice([24, 23, 6, 0]), ())
    if chance.random() < 0.3:
        arrays = {**world.arrays, "patient": world.arrays["patient"].astype(chance.choice(["u1", "i8", "U9", "S9"]))}
    file = io.BytesIO()
    np.savez(file, **arrays)
    column = chance.choice(["patient", "patient", "x_train", "nothing", "", "ε"])
    classes, most = chance.choice([3, 3, 3, 2, 0, -1, 10**9]), chance.choice([1, 2, 10**6, 0, -1])
    datasets.load("", world.file("data.npz", file.getvalue()), classes, column, most)
    return ACCEPTED


def configuration(world: World, chance: random.Random) -> str:
    """A damaged private/config.json, from which evaluate.py learns where the records are."""

    run = world.copy_of_run()
    file = run / "private" / "config.json"
    file.write_bytes(as_json(changed(json.loads(file.read_bytes()), chance), chance))
    real_images(run, world.release)
    return ACCEPTED


def statement(world: World, chance: random.Random) -> str:
    """A damaged privacy.json whose checksum is right."""
    run = world.copy_of_run()
    file = run / "release" / "privacy.json"
    file.write_bytes(as_json(changed(json.loads(file.read_bytes()), chance), chance))
    write_checksums(run / "release") if chance.random() < 0.8 else (run / "release" / "SHA256SUMS").unlink()
    import tensorflow as tf

    find, tf.saved_model.load = tf.saved_model.load, lambda _: world.release.sampler
    try:
        str(read_release(run))
    finally:
        tf.saved_model.load = find
    return ACCEPTED


def checksums(world: World, chance: random.Random) -> str:
    """A damaged SHA256SUMS, or damaged files under a sound one."""
    run = world.copy_of_run()
    sums = run / "release" / "SHA256SUMS"
    if chance.random() < 0.5:
        sums.write_bytes(damaged(sums.read_bytes(), chance))
    else:
        file = chance.choice(sorted(path for path in (run / "release").rglob("*") if path.is_file()))
        file.write_bytes(damaged(file.read_bytes(), chance))
    from tf_dp2vae.checksums import verify_checksums

    verify_checksums(run / "release")
    return ACCEPTED


def ledger(world: World, chance: random.Random) -> str:
    """A damaged ledger; one that is accepted must not have forgotten a charge, unless its end was cut off."""
    content = (world.run / "private" / "ledger.jsonl").read_bytes()
    lines = content.splitlines()
    way = chance.random()
    if way < 0.5:
        content = damaged(content, chance)
    elif way < 0.9:
        place = chance.randrange(len(lines))
        lines[place] = as_json(changed(json.loads(lines[place]), chance), chance)
        content = b"\n".join(lines) + b"\n"
    else:
        content = b"\n".join(chance.sample(lines, len(lines))) + b"\n"
    Ledger(world.file("ledger.jsonl", content), 24).close()
    return ACCEPTED


def checkpoint(world: World, chance: random.Random) -> str:
    """A damaged model.keras."""
    content = (world.run / "private" / "model.keras").read_bytes()
    content = damaged(content, chance) if chance.random() < 0.6 else _changed_model(content, chance)
    load(world.file("model.keras", content))
    return ACCEPTED


def _changed_model(content: bytes, chance: random.Random) -> bytes:
    """The archive with its configuration changed and sound checksums."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(file, "w") as again:
        for name in archive.namelist():
            part = archive.read(name)
            if name == "config.json":
                entry = json.loads(part)
                part = as_json({**entry, "config": changed(entry["config"], chance)}, chance)
            again.writestr(name, part if chance.random() < 0.95 else damaged(part, chance))
    return file.getvalue()


def saved_model(world: World, chance: random.Random) -> str:
    """A damaged SavedModel: mostly with its checksums, which tell; sometimes without, where TensorFlow has to."""
    run = world.copy_of_run()
    sampler = run / "release" / "sampler"
    file = chance.choice(sorted(path for path in sampler.rglob("*") if path.is_file()))
    way = chance.randrange(4)
    if way == 0:
        file.unlink()
    elif way == 1:
        file.unlink()
        file.symlink_to(chance.choice([file, Path("/dev/null"), world.data]))
    else:
        file.write_bytes(damaged(file.read_bytes(), chance))
    if chance.random() < 0.3:
        (run / "release" / "SHA256SUMS").unlink()
    read_release(run)
    return ACCEPTED


KINDS: dict[str, Callable[[World, random.Random], str]] = {
    "flags": flags,
    "flags of evaluate": evaluate_flags,
    "npz": npz,
    "image files": image_files,
    "labels and ids": labels_and_ids,
    "configuration": configuration,
    "privacy.json": statement,
    "checksums": checksums,
    "ledger": ledger,
    "checkpoint": checkpoint,
    "SavedModel": saved_model,
}
_MAY_DIE = ("SavedModel",)


# --- Running --------------------------------------------------------------------------------------------------------------


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
