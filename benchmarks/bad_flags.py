"""Odd flags for `train.py` and `evaluate.py`: kinds of `fuzz.py`."""

from __future__ import annotations

import io
import os
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any
from unittest import mock

from fuzz_world import ACCEPTED, World, called
from odd_values import WrongError

import evaluate
import train
from tf_dp2vae.evaluation.release import Release
from tf_dp2vae.model import DP2VAE
from tf_dp2vae.validation import InvalidInputError

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

    with _up_to(DP2VAE, "fit"), called("train.py", *base, *odd), _as_program(root):
        train.main()
    return ACCEPTED


def evaluate_flags(world: World, chance: random.Random) -> str:
    """evaluate.py called with odd flags, up to where it would sample."""
    names = ["--parts", "--samples", "--fid-samples", "--inception-weights", "--dataset", "--data", "--num-classes"]
    names += ["--epochs", "--seed", "--release-uncovered-numbers", "--nonsense"]
    odd = [word for _ in range(chance.choice([1, 2])) for word in (chance.choice(names), chance.choice(WORDS))]
    run = chance.choice([str(world.run), str(world.run), str(world.folder / "nowhere"), chance.choice(WORDS)])

    root = Path(tempfile.mkdtemp(dir=world.folder))
    with _up_to(Release, "samples"), called("evaluate.py", run, *odd), _as_program(root):
        evaluate.main()
    return ACCEPTED


def _flag_names() -> list[str]:
    text = io.StringIO()
    with called("train.py", "--help"), redirect_stdout(text), suppress(SystemExit):
        train.main()
    return sorted(
        {word for word in text.getvalue().replace(",", " ").split() if word.startswith("--") and len(word) > 3}
    )


class _AcceptedError(BaseException):
    """Stands for the work that would begin now."""


@contextmanager
def _up_to(owner: Any, name: str) -> Iterator[None]:
    """Ends quietly where the program would call that: it has accepted its flags."""

    def stop(*_: Any, **__: Any) -> None:
        raise _AcceptedError

    with mock.patch.object(owner, name, stop), suppress(_AcceptedError):
        yield


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
