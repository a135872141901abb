"""One engine in a process of its own, which steps when it is told: so memory is its own, and engines can take turns.

    python -m speed_engines.worker tensorflow book-keeping mnist-conv 256 1

Reads `step` or `memory` line by line, and answers with milliseconds or MiB.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import importlib
import re
import resource
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


def _milliseconds(run: Callable[[], None], least: float) -> float:
    """Of one step, from as many in a row as take `least` seconds: what is drawn ahead for a step is paid for by another."""
    steps, start = 0, time.perf_counter()
    while not steps or time.perf_counter() - start < least:
        run()
        steps += 1
    return 1e3 * (time.perf_counter() - start) / steps


def _answer(run: Callable[[], None], question: str, before: float) -> float:
    # The engines before this one filled the caches. For steps of a second that does not matter.
    warm = _milliseconds(run, 0.03)
    if question == "memory":
        # Above what the imported framework holds; the first steps, which compile, are over.
        _forget_peak()
        _milliseconds(run, 0.1)
        return _mebibytes("VmHWM") - before
    return warm if warm > 1e3 else _milliseconds(run, 0.1)


def _bound_memory() -> None:
    """Two thirds of the machine's, so that a Jacobian that does not fit ends its own process and no other."""
    bound = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * 2 // 3
    resource.setrlimit(resource.RLIMIT_AS, (bound, bound))


def main() -> None:
    framework, engine, network, batch, draws = sys.argv[1:]
    if engine.startswith("tfp-"):
        _bound_memory()
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
