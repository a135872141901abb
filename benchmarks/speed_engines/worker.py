"""One engine in a process of its own, which steps when it is told: so memory is its own, and engines can take turns.

    python -m speed_engines.worker tensorflow book-keeping mnist-conv 256 1

Reads `step` or `memory` line by line, and answers with milliseconds or MiB.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import importlib
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

from speed_engines.shapes import shapes_of


def _mebibytes(field: str) -> float:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    return int(found.group(1)) / 1024 if found else float("nan")


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _answer(run: Callable[[], None], question: str, before: float) -> float:
    if question == "memory":
        # Above what the imported framework holds; the first steps, which compile, are over.
        _forget_peak()
        for _ in range(3):
            run()
        return _mebibytes("VmHWM") - before
    run()  # to warm caches that the engines before this one filled
    start = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - start)


def main() -> None:
    framework, engine, network, batch, draws = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what frameworks print is no answer
    module = importlib.import_module(f"speed_engines.with_{framework}")
    before = _mebibytes("VmRSS")
    run = module.build(engine, shapes_of(network), int(batch), int(draws))
    for _ in range(2):
        run()
    print("ready", file=answers, flush=True)
    for question in sys.stdin:
        print(_answer(run, question.strip(), before), file=answers, flush=True)


if __name__ == "__main__":
    main()
