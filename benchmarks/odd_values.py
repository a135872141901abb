"""Odd bytes, values and arrays for `fuzz.py`, each a function of a random generator."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np


class WrongError(Exception):
    """A case that came out as none may."""


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
