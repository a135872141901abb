"""A small valid file of each kind, to be damaged, and what becomes of a case."""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import numpy as np

import train
from tf_dp2vae.evaluation.release import read_release

REFUSED, ACCEPTED = "refused", "accepted"


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
