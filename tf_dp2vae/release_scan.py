"""The last look at a release before it appears: nothing in it that has no business there.

| looked for | how |
|---|---|
| files, links | an allow-list of names; no symbolic links |
| encoder weights, optimizer state | a list of variables, value by value; eight numbers of any other, in any file |
| records | a telling run of pixels of each, as bytes or float32 in any file, and in the pixels of pictures |
| paths, the machine's name | as text in any file; a name below five letters in the texts alone |
| seeds of the noise, private metrics | as numbers in the texts; the keys of privacy.json by an allow-list |
| what pictures carry besides pixels | an allow-list of PNG chunks |

The list is of the decoder, the latent prior, the contrast and the judge. "Eight numbers" are consecutive ones, as float32.

It guards against mistakes, not against malice: whoever wants to smuggle can encrypt. That what is released *depends* on
answers alone is shown elsewhere, by replay (tests/test_replay.py).
"""

from __future__ import annotations

import csv
import json
import os
import platform
import re
import struct
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.image
import numpy as np
import tensorflow as tf

from tf_dp2vae.byte_runs import ByteRuns, records_as_runs, variables_as_runs
from tf_dp2vae.randomness import InsecureSeed
from tf_dp2vae.validation import InvalidInputError

if TYPE_CHECKING:
    from tf_dp2vae.model import DP2VAE
    from tf_dp2vae.records import Records

FILES = {
    "privacy.json",
    "privacy.md",
    "NOT-PRIVATE.md",
    "samples.png",
    "SHA256SUMS",
    "sampler/saved_model.pb",
    "sampler/variables/variables.index",
    "sampler/variables/variables.data-00000-of-00001",
}
JSON_KEYS = {
    *("end_to_end", "epsilon", "epsilon_rdp", "epsilon_pld", "delta", "accountant", "adjacency", "num_records"),
    *("unit", "unit_column", "max_records_per_unit", "num_units", "l2_norm_clip", "events", "mechanism"),
    *("noise_multiplier", "sampling_rate", "count", "type", "budget_share", "pretraining", "shared_ledger", "noise"),
    *(
        "hyper_parameter_search",
        "covered",
        "trials",
        "epsilon_of_one_run",
        "means",
        "public_seed",
        "audit_canaries",
        "versions",
        "given_encoder",
        "not_private",
    ),
    *("tensorflow", "keras", "tensorflow-privacy", "dp-accounting", "numpy", "randomgen"),
}
PNG_CHUNKS = {b"IHDR", b"PLTE", b"IDAT", b"IEND", b"sBIT", b"pHYs", b"tRNS", b"gAMA", b"sRGB"}
_PNG = b"\x89PNG\r\n\x1a\n"
_LONGEST_WORD = 200
_TELLING_LETTERS = 5
"""A name that has as many is looked for among weights too. In a megabyte of random bytes, which is what a release holds, one
of two letters stands by chance a dozen times, one of five with a probability below 1e-6."""
_TELLING_DIGITS = 6
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e-?\d+)?(?![\w.]\d)")


class ReleaseRefusedError(InvalidInputError):
    """Something stands in the release that must not be published; nothing was published."""


@dataclass(frozen=True)
class Secrets:
    """What must not stand in a release, and what may.

    Attributes:
      variables: the decoder's, the prior's, the contrast's and the judge's, which may.
      runs: bytes that must not stand in any file.
      pixels: rows of pixels that must not stand in any picture.
      words: patterns that must not match any file, and what they are.
      short_words: the same, but looked for in texts alone.
      seeds: whole numbers that must not stand in a text.
      metrics: private numbers.
    """

    variables: list[np.ndarray] = field(default_factory=list)
    runs: list[ByteRuns] = field(default_factory=list)
    pixels: list[ByteRuns] = field(default_factory=list)
    words: dict[re.Pattern[bytes], str] = field(default_factory=dict)
    short_words: dict[re.Pattern[bytes], str] = field(default_factory=dict)
    seeds: frozenset[int] = frozenset()
    metrics: tuple[float, ...] = ()


def refuse_leaks(folder: Path, secrets: Secrets) -> None:
    """Scans a release.

    Raises:
      ReleaseRefusedError: one line that says what was found where.
    """
    found = list(scan(folder, secrets))
    if found:
        raise ReleaseRefusedError(
            f"the release was not published: {'; '.join(found[:5])}"
            f"{f'; and {len(found) - 5} more' if len(found) > 5 else ''}. A name, path or number: remove what puts it "
            "there, and export again. What is a record's: let it be, since another try would publish that this one failed."
        )


def scan(folder: Path, secrets: Secrets) -> Iterator[str]:
    """What stands in the folder and must not, a few words for each finding."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_dir() or name in FILES):
            yield f"{name} is {'a link' if path.is_symlink() else 'no file of a release'}"
        elif path.is_file():
            yield from (f"{name} holds {what}" for what in _in_file(path, secrets))
    yield from (f"sampler/variables holds {what}" for what in _in_variables(folder / "sampler", secrets.variables))


def secrets_of(model: DP2VAE, records: Records | None, private: Path) -> Secrets:
    """What a run must keep to itself.

    Args:
      model: the trained model.
      records: what it was trained on; None leaves them out of the search.
      private: the run's private folder.
    """
    allowed = [variable.numpy() for variable in model.released_variables]
    others = {
        "encoder weights": [variable.numpy() for variable in model.encoder.variables],
        "optimizer state": [variable.numpy() for variable in (model.optimizer.variables if model.compiled else [])],
    }
    runs = [variables_as_runs(what, values, allowed) for what, values in others.items()]
    pixels: list[ByteRuns] = []
    if records is not None:
        with records.opened() as (images, _):
            in_bytes, in_pictures = records_as_runs(images)
            runs, pixels = runs + in_bytes, in_pictures
    entropy = model.mechanisms.entropy
    seeds = frozenset({entropy.seed} if isinstance(entropy, InsecureSeed) else ())
    return Secrets(allowed, runs, pixels, *_places(private), seeds, tuple(_private_metrics(private)))


def _in_file(path: Path, secrets: Secrets) -> Iterator[str]:
    content = path.read_bytes()
    yield from (what for pattern, what in secrets.words.items() if pattern.search(content))
    yield from (runs.what for runs in secrets.runs if runs.found_in(content))
    if path.suffix == ".png":
        yield from _in_picture(path, content, secrets)
    if path.suffix in (".md", ".json"):
        yield from _in_text(content, secrets)
    if path.suffix == ".json":
        unknown = sorted(set(_keys(json.loads(content))) - JSON_KEYS)
        yield from (f"the key {key}, which no statement has (release_scan.JSON_KEYS)" for key in unknown)


def _in_text(content: bytes, secrets: Secrets) -> Iterator[str]:
    yield from (what for pattern, what in secrets.short_words.items() if pattern.search(content))
    text = content.decode("utf-8", errors="replace")
    longest = max(map(len, text.split()), default=0)
    if longest > _LONGEST_WORD:
        yield f"a word of {longest} letters, which is no text"
    numbers = _NUMBER.findall(text)
    if secrets.seeds & {int(number) for number in numbers if number.isdigit() and len(number) >= 4}:
        yield "the seed of the noise"
    for number in numbers:
        digits = len(number.partition("e")[0].replace(".", "").lstrip("-0"))
        if digits >= _TELLING_DIGITS and any(
            float(f"{value:.{digits}g}") == float(number) for value in secrets.metrics
        ):
            yield f"a private metric ({number})"


def _in_picture(path: Path, content: bytes, secrets: Secrets) -> Iterator[str]:
    extra = sorted({chunk.decode("latin1") for chunk in _chunks(content)} - {c.decode() for c in PNG_CHUNKS})
    if extra:
        yield f"more than pixels ({', '.join(extra)})"
    pixels = np.round(matplotlib.image.imread(path) * 255).astype(np.uint8)
    channels = pixels[..., None] if pixels.ndim == 2 else pixels[..., :3]
    # Pictures of ours show each pixel tripled; another one may show it once, or doubled.
    for scale in (1, 2, 3):
        for shift in range(scale):
            rows = channels[:, shift::scale]
            for row_bytes in (rows[..., 0].tobytes(), rows.tobytes()):
                found = [runs.what for runs in secrets.pixels if runs.found_in(row_bytes)]
                if found:
                    yield from found[:1]
                    return


def _chunks(content: bytes) -> Iterator[bytes]:
    """Names of a PNG's chunks; `rest` for whatever follows its end."""
    position, name = len(_PNG), b""
    while position + 8 <= len(content) and name != b"IEND":
        length, name = struct.unpack(">I4s", content[position : position + 8])
        yield name
        position += 12 + length
    if position != len(content) or not content.startswith(_PNG):
        yield b"rest"


def _in_variables(sampler: Path, allowed: list[np.ndarray]) -> Iterator[str]:
    if not (sampler / "variables" / "variables.index").is_file():
        return
    reader = tf.train.load_checkpoint(str(sampler / "variables" / "variables"))
    may = Counter((value.shape, value.tobytes()) for value in allowed)
    for name, shape in sorted(reader.get_variable_to_shape_map().items()):
        if name == "_CHECKPOINTABLE_OBJECT_GRAPH":
            continue
        value = np.asarray(reader.get_tensor(name))
        if may[value.shape, value.tobytes()] == 0:
            yield f"{name.partition('/.ATTRIBUTES')[0]} {shape}, a variable of no released part"
        may[value.shape, value.tobytes()] -= 1


def _keys(entry: Any) -> Iterator[str]:
    if isinstance(entry, dict):
        for key, value in entry.items():
            yield key
            yield from _keys(value)
    elif isinstance(entry, list):
        for value in entry:
            yield from _keys(value)


def _places(private: Path) -> tuple[dict[re.Pattern[bytes], str], dict[re.Pattern[bytes], str]]:
    """Folders that a release might name by mistake, and this machine: what tells in any file, and what in texts alone."""
    package = Path(__file__).resolve().parent
    folders = {private.resolve().parent, Path.cwd(), Path(os.path.expanduser("~")), package.parent, Path(sys.prefix)}
    places = {
        _word(str(folder)): f"the path of a folder of this machine ({folder})"
        for folder in folders
        if len(str(folder)) >= _TELLING_LETTERS
    }
    node = platform.node()
    # A machine whose name is a plain word is not looked for: such a word may stand in any text.
    machine = {_word(node): "the name of this machine"} if re.search(r"[\d-]", node) else {}
    return (places | machine, {}) if len(node) >= _TELLING_LETTERS else (places, machine)


def _word(text: str) -> re.Pattern[bytes]:
    return re.compile(rb"(?<![\w.-])" + re.escape(os.fsencode(text)) + rb"(?![\w-])")


def _private_metrics(private: Path) -> Iterator[float]:
    history = private / "history.csv"
    if history.is_file():
        with history.open(encoding="utf-8", newline="") as file:
            yield from (float(row["loss"]) for row in csv.DictReader(file) if row.get("loss"))
