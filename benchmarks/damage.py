"""What may happen to a file of a killed run: bits flip, ends and lines are lost, a charge is made cheaper."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path


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
