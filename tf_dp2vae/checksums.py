"""Checksums of a release, so that a damaged copy is recognised before TensorFlow runs it. `sha256sum -c` reads them too.

They tell accidents, not attackers: whoever changes a file can change its line. A SavedModel is a program; load only those
whose origin you trust.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from tf_dp2vae.validation import InvalidInputError, check

NAME = "SHA256SUMS"


def write_checksums(folder: Path) -> None:
    """One line for each file in the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{_digest(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    (folder / NAME).write_text("".join(lines), encoding="utf-8")


def verify_checksums(folder: Path) -> None:
    """Compares; a folder without checksums passes. Files that have no line, such as a report added later, pass too.

    Raises:
      InvalidInputError: naming the first file that is missing or another.
    """
    sums = folder / NAME
    if not os.path.lexists(sums):
        return
    try:
        check(sums.is_file(), f"{sums} is no file: copy the release again.")
        lines = [line.partition("  ") for line in sums.read_text(encoding="utf-8").splitlines()]
        for digest, _, name in lines:
            path = folder / name
            inside = bool(name) and path.resolve().is_relative_to(folder.resolve())
            check(inside, f"{sums} is damaged (a line names no file of the release): copy the release again.")
            check(
                path.is_file(),
                f"{folder} has lost {name}, so it is damaged or was tampered with: copy it again, or train again.",
            )
            check(
                _digest(path) == digest,
                f"{path} is damaged or was tampered with (its sha256 is another): copy it again, or train again.",
            )
    except (OSError, ValueError) as error:
        if isinstance(error, InvalidInputError):
            raise
        raise InvalidInputError(f"{sums} cannot be read ({type(error).__name__}): copy the release again.") from error


def _digest(path: Path) -> str:
    sha = hashlib.sha256()
    with path.open("rb") as file:
        for piece in iter(lambda: file.read(1 << 20), b""):
            sha.update(piece)
    return sha.hexdigest()
