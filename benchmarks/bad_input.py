"""The kinds of bad input that `fuzz.py` tries: each damages one thing that users hand in, and hands it in."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import shutil
import struct
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import numpy as np
from odd_values import Trap, WrongError, as_json, changed, damaged, odd_array

import train
from tf_dp2vae import datasets
from tf_dp2vae.checksums import write_checksums
from tf_dp2vae.evaluation.real import real_images
from tf_dp2vae.evaluation.release import Release, read_release
from tf_dp2vae.ledger import Ledger
from tf_dp2vae.model import DP2VAE
from tf_dp2vae.saved import load
from tf_dp2vae.validation import InvalidInputError

REFUSED, ACCEPTED = "refused", "accepted"


class _AcceptedError(BaseException):
    """Stands for the training that would begin now."""


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
    datasets.load_npz(world.file("data.npz", content), 3)
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
    datasets.load_npz(file, 3)
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
    datasets.load_npz(world.file("data.npz", file.getvalue()), classes, column, most)
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
