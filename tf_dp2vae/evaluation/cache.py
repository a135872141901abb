"""What evaluations of many runs on the same records need not compute again: features, accuracies of real training.

Entries are named by a digest of everything they were made from, so nothing stale is ever found. They derive from records:
the folder is closed to others, like a run's private side.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tf_dp2vae.durable import placed
from tf_dp2vae.runs import PRIVATE_MODE


def digest(*parts: Any) -> str:
    """sha256 over arrays (shape, type and content) and whatever JSON can hold."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            found.update(f"{part.dtype}{part.shape}".encode())
            found.update(np.ascontiguousarray(part).tobytes())
        else:
            found.update(json.dumps(part, sort_keys=True).encode())
        found.update(b"\0")
    return found.hexdigest()


class Cache:
    """A folder of results by digest; it appears with the first entry. Damaged entries are made anew."""

    def __init__(self, folder: Path):
        """Args: the folder."""
        self.folder = folder

    def array(self, key: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """The array of that name, made where there is none yet."""
        file = self.folder / f"{key}.npy"
        try:
            return np.load(file, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            made = make()
        with self._placed(file) as stream:
            np.save(stream, made)
        return made

    def values(self, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The same for what JSON can hold."""
        file = self.folder / f"{key}.json"
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            made = make()
        with self._placed(file) as stream:
            stream.write((json.dumps(made) + "\n").encode())
        return made

    def _placed(self, file: Path) -> AbstractContextManager[BinaryIO]:
        if not self.folder.is_dir():
            self.folder.mkdir(parents=True)
        self.folder.chmod(PRIVATE_MODE)
        return placed(file, mark=str(os.getpid()))
