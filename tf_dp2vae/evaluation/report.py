"""What an evaluation found: a table for the terminal, report.md and report.json. Written whole, or not at all."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tf_dp2vae.durable import StorageError, is_storage_fault, write_atomically
from tf_dp2vae.runs import PRIVATE_MODE

NOT_COVERED = (
    "Computed from real records without noise: the privacy statement's ε does not cover these numbers, and whoever "
    "publishes them publishes something about the records."
)
PUBLISHED = "evaluation-not-covered-by-epsilon.json"


@dataclass(frozen=True)
class Part:
    """One part of a report.

    Attributes:
      title: its heading.
      rows: name and value of each line, for people.
      values: the same and more, for `report.json`; all numbers.
    """

    title: str
    rows: list[tuple[str, str]]
    values: dict[str, Any]


def missing(title: str, why: str) -> Part:
    """A part that could not be measured, and why."""
    return Part(title, [("missing", why)], {f"{title.lower()}_missing": why})


@dataclass(frozen=True)
class Report:
    """One evaluation.

    Attributes:
      statement: the run's `privacy.json`.
      dataset: name of the real data.
      seed: of samples and classifiers.
      parts: in the order of the table.
      seconds: how long each part took; for the private side alone.
    """

    statement: dict[str, Any]
    dataset: str
    seed: int
    parts: list[Part]
    seconds: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """All that was found."""
        values = {name: value for part in self.parts for name, value in part.values.items()}
        what = {"dataset": self.dataset, "seed": self.seed, "pretraining": self.statement.get("pretraining")}
        return {"not_covered": NOT_COVERED, **what, **guarantee(self.statement).values, **values}

    def __str__(self) -> str:
        """The terminal's table."""
        parts = self._all_parts()
        width = max(len(name) for part in parts for name, _ in part.rows)
        lines = [line for part in parts for line in ("", part.title, *(f"  {n:<{width}}  {v}" for n, v in part.rows))]
        return "\n".join(lines[1:])

    def markdown(self) -> str:
        """What `report.md` holds."""
        lines = [f"# Evaluation on {self.dataset}", "", f"**Private.** {NOT_COVERED}", ""]
        for part in self._all_parts():
            lines += [f"## {part.title}", "", "| what | value |", "|---|---|"]
            lines += [f"| {name} | {value} |" for name, value in part.rows] + [""]
        return "\n".join(lines)

    def _all_parts(self) -> list[Part]:
        took = [(name, f"{value:.0f}") for name, value in self.seconds.items()]
        return [guarantee(self.statement), *self.parts, *([Part("Seconds taken", took, {})] if took else [])]

    def write(self, folder: Path) -> None:
        """`report.json` and `report.md`."""
        text = json.dumps({**self.to_json(), "seconds": self.seconds}, indent=2) + "\n"
        (folder / "report.json").write_text(text, encoding="utf-8")
        (folder / "report.md").write_text(self.markdown(), encoding="utf-8")

    def publish(self, release: Path) -> Path:
        """Puts the numbers beside the release, under a name that says what they are. Only when asked for."""
        file = release / PUBLISHED
        write_atomically(file, (json.dumps(self.to_json(), indent=2) + "\n").encode())
        return file


def guarantee(statement: dict[str, Any]) -> Part:
    """What the release's own statement says."""
    delta, given = statement["delta"], statement.get("given_encoder")
    values = {"end_to_end": statement["end_to_end"], "epsilon": statement["epsilon"], "delta": delta}
    if statement["end_to_end"] and statement["epsilon"] is not None:
        words = f"ε = {statement['epsilon']:.4g} at δ = {delta:g}, end to end"
    elif given and given.get("epsilon") is not None:
        words = f"none end to end; given the encoder: ε = {given['epsilon']:.4g} at δ = {delta:g}"
    else:
        words = "none"
    return Part("Privacy statement", [("guarantee", words)], {**values, "given_encoder": given})


class Stopwatch:
    """Seconds by name, added up.

    Attributes:
      seconds: so far.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Adds what the block takes."""
        start = time.perf_counter()
        yield
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - start, 1)


@contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """Lends a folder that takes the given one's place when all went well, and vanishes when not.

    Raises:
      StorageError: something could not be written there, or in the block.
    """
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        folder.parent.mkdir(mode=PRIVATE_MODE, exist_ok=True)
        unfinished.mkdir(mode=PRIVATE_MODE)
        yield unfinished
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(unfinished, folder)
    except OSError as error:
        if not is_storage_fault(error):
            raise
        raise StorageError(f"{folder} is not written ({error}): make room or give access, then start again.") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
