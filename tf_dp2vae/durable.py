"""Files that survive a crash: on the device when a call returns, whole or not there at all.

`write_atomically` writes beside the file, flushes to the device, renames, and flushes the folder: for whatever is replaced
as a whole (checkpoints, answers, configuration). `append` writes one line at the end and flushes: a crash can cut off that
line's end but touches no other, and it costs one flush instead of two and a rename, which is what a ledger that is charged
at every step can afford.

`pack` and `unpack` put arrays and JSON into one file under a digest, so that damage is recognised before anything in it is
parsed, and no pickle is ever opened.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tf_dp2vae.validation import InvalidInputError

_DIGEST = 64
_JSON = "json"
_STORAGE_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


class StorageError(InvalidInputError):
    """The disk is full, read-only or broken. Nothing that was promised is lost."""


class DamagedFileError(InvalidInputError):
    """A file is not what was written."""


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Turns an operating system's refusal to write into one line."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{path} could not be written ({error.strerror}): make room or give access.") from error


def is_storage_fault(error: Exception) -> bool:
    """Whether a library failed because the disk is full, read-only or broken; not all of them raise OSError."""
    return any(getattr(error, "errno", None) == code or os.strerror(code) in str(error) for code in _STORAGE_FAULTS)


def sync_folder(folder: Path) -> None:
    """Flushes the folder itself: which names it holds."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Flushes every file and folder below, so that a rename of the whole cannot arrive before its contents."""
    for parent, _, files in os.walk(folder):
        for file in files:
            with open(Path(parent) / file, "rb") as opened:
                os.fsync(opened.fileno())
        sync_folder(Path(parent))


@contextmanager
def placed(path: Path, mark: str = "unfinished") -> Iterator[BinaryIO]:
    """Lends a stream; what was written to it replaces or creates the file: after a crash it is the old one or the new one.

    Args:
      path: of the file.
      mark: ends the name that it has meanwhile; one of each process's own, where several may write the file.

    Raises:
      StorageError: nothing has changed.
    """
    unfinished = path.with_name(f".{path.name}.{mark}")
    with storing(path):
        try:
            with open(unfinished, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces or creates the file by its whole content (`placed`)."""
    with placed(path) as file:
        file.write(content)


def append(file: BinaryIO, path: Path, line: bytes) -> None:
    """Writes the line at the file's end, on the device when this returns.

    Raises:
      StorageError: a part of the line may have been written; whoever reads the file has to expect that.
    """
    with storing(path):
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other processes away from the folder for as long as this one lives; a killed process holds nothing.

    Raises:
      InvalidInputError: another process holds it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise InvalidInputError(
            f"run folder {folder.parent} is in use by another process: wait for it to end."
        ) from error
    finally:
        os.close(descriptor)


def sha256(content: bytes) -> str:
    """In hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def pack(meta: dict[str, Any], arrays: dict[str, np.ndarray]) -> bytes:
    """JSON and arrays as one file's content, their digest in front."""
    buffer = io.BytesIO()
    text = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    np.savez(buffer, **{_JSON: text}, **arrays)
    body = buffer.getvalue()
    return sha256(body).encode() + body


def unpack(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The inverse of `pack`.

    Raises:
      DamagedFileError: the content is not what was packed, or cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DamagedFileError(f"{path} cannot be read ({error.strerror}): {WAY_OUT}.") from error
    digest, body = content[:_DIGEST], content[_DIGEST:]
    if sha256(body).encode() != digest:
        raise DamagedFileError(f"{path} is damaged (its digest does not fit its content): {WAY_OUT}.")
    with np.load(io.BytesIO(body), allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    return json.loads(arrays.pop(_JSON).tobytes()), arrays


WAY_OUT = (
    "restore the run's private folder from one copy, or start a new run and count the old ledger in with --ledger (with "
    "--trials, which excludes it: count the broken run as one of them)"
)
"""What to do about a run whose files no longer fit together."""
