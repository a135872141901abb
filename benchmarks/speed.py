"""What a private step costs: ours, the ordinary step, tensorflow-privacy, Opacus and JAX on the same networks.

    python benchmarks/speed.py --peers .venv-bench/bin/python

Every engine takes the whole step: encoder forward, clipped sum, noise, Adam. Each runs in a process of its own, so that its
memory is its own; they take turns step by step, and those that wait are stopped, so that what else the machine does falls
on all alike. Figures are medians of one run. Without `--peers` (an interpreter with requirements-bench.txt) only the
TensorFlow engines run. Rows go to benchmarks/results/speed.json, the pictures to benchmarks/results/speed.png.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median

import matplotlib
from simple_parsing import ArgumentParser, DashVariant

matplotlib.use("Agg")

import matplotlib.pyplot as plt

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PATH = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])

ORDINARY, OURS = ("non-private", "non-private-no-xla"), "book-keeping-no-xla"
OWN = [*ORDINARY, "book-keeping", OURS]
PEERS = ["opacus-hooks", "opacus-functorch", "opacus-ghost", "jax-vmap", "torch-non-private", "jax-non-private"]
# tensorflow-privacy's Jacobian needs more memory or minutes than a laptop has on the larger ones.
EXTRA = {("mnist-conv", 256): ["tfp-vectorized", "tfp-loop"], ("table-mlp", 256): ["tfp-vectorized", "tfp-loop"]}
CELLS = [
    *(("mnist-conv", batch) for batch in (64, 256, 1024, 4096)),
    *(("colour-conv", batch) for batch in (256, 1024)),
    *(("table-mlp", batch) for batch in (256, 1024, 4096)),
]
GROWTH = [("weights:1", 1), ("weights:8", 1), ("side:1", 1), ("side:3", 1), ("mnist-conv", 4)]


@dataclass(frozen=True)
class Flags:
    """The speed benchmark.

    Attributes:
      peers: the interpreter of an environment with requirements-bench.txt; empty leaves its engines out.
      seconds: of timed steps for each engine and batch; at least three steps, at most 21.
    """

    peers: str = ""
    seconds: float = 1.5


class Worker:
    """An engine in its own process, suspended except while it is asked."""

    def __init__(self, engine: str, network: str, batch: int, draws: int, peers: str):
        framework = next((name for name in ("torch", "jax") if name in engine), "tensorflow")
        framework = "torch" if engine.startswith("opacus") else framework
        interpreter = sys.executable if framework == "tensorflow" else peers
        command = [interpreter, "-m", "speed_engines.worker", framework, engine, network, str(batch), str(draws)]
        self.engine = engine
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONPATH": PATH},
        )
        self._command = f"PYTHONPATH={PATH} {' '.join(command)}"

    def suspend_when_ready(self) -> None:
        """Waits for the first steps, which compile."""
        if self._read() != "ready":
            raise RuntimeError(f"{self.engine} did not start; to see why: {self._command}")
        self._process.send_signal(signal.SIGSTOP)

    def ask(self, question: str) -> float:
        """Milliseconds of one `step`, or MiB of `memory`."""
        self._process.send_signal(signal.SIGCONT)
        assert self._process.stdin is not None
        self._process.stdin.write(question + "\n")
        self._process.stdin.flush()
        answer = float(self._read())
        self._process.send_signal(signal.SIGSTOP)
        return answer

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@contextmanager
def workers(engines: list[str], network: str, batch: int, draws: int, peers: str) -> Iterator[list[Worker]]:
    """The engines of one comparison, all started and none running."""
    started: list[Worker] = []
    try:
        for engine in engines:
            started.append(Worker(engine, network, batch, draws, peers))
        for worker in started:
            worker.suspend_when_ready()
        yield started
    finally:
        for worker in started:
            worker.close()


def measure(engines: list[str], network: str, batch: int, draws: int, flags: Flags) -> list[dict]:
    """Interleaved timings, then peak memory, of all engines on one network and batch."""
    with workers(engines, network, batch, draws, flags.peers) as running:
        times = {worker.engine: [worker.ask("step")] for worker in running}
        wanted = {name: min(max(round(1e3 * flags.seconds / first[0]), 3), 21) for name, first in times.items()}
        for repetition in range(max(wanted.values())):
            for worker in running:
                if repetition < wanted[worker.engine]:
                    times[worker.engine].append(worker.ask("step"))
        rows = [
            {
                "network": network,
                "batch": batch,
                "draws": draws,
                "engine": worker.engine,
                "median_ms": round(median(times[worker.engine][1:]), 2),
                "peak_mib": round(worker.ask("memory")),
            }
            for worker in running
        ]
    print(table(rows), flush=True)
    return rows


def ordinary(rows: list[dict], row: dict) -> dict:
    """The faster of the two ordinary steps beside `row`."""
    beside = [r for r in rows if all(r[key] == row[key] for key in ("network", "batch", "draws"))]
    return min((r for r in beside if r["engine"] in ORDINARY), key=lambda r: r["median_ms"])


def table(rows: list[dict]) -> str:
    """Milliseconds and memory, and their ratios to the ordinary step."""
    lines = []
    for row in rows:
        base = ordinary(rows, row)
        lines.append(
            f"| {row['network']} | {row['batch']} | {row['draws']} | {row['engine']} | {row['median_ms']:.1f} | "
            f"{row['median_ms'] / base['median_ms']:.2f} | {row['peak_mib']} | {row['peak_mib'] / base['peak_mib']:.2f} |"
        )
    return "\n".join(lines)


def draw(rows: list[dict], growth: list[dict], file: Path) -> None:
    """Left: all engines at batch 256. Middle: examples a second against batch. Right: our ratio as networks grow."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(16, 5))
    engines = sorted({row["engine"] for row in rows if row["batch"] == 256})
    for row in (row for row in rows if row["batch"] == 256):
        left.scatter(row["median_ms"] / ordinary(rows, row)["median_ms"], engines.index(row["engine"]), color="C0")
    left.set(xscale="log", xlabel="time of a step at batch 256, ordinary = 1", yticks=range(len(engines)))
    left.set_yticklabels(engines)
    for color, network in enumerate(dict.fromkeys(row["network"] for row in rows)):
        for engine, style in ((OURS, "-o"), (ORDINARY[1], "--")):
            points = [r for r in rows if r["network"] == network and r["engine"] == engine]
            rates = [1e3 * r["batch"] / r["median_ms"] for r in points]
            middle.plot([r["batch"] for r in points], rates, style, color=f"C{color}", label=f"{network}, {engine}")
    middle.set(xscale="log", yscale="log", xlabel="batch", ylabel="examples a second")
    middle.legend(fontsize=7)
    ours = [row for row in growth if row["engine"] == OURS]
    names = [f"{row['network']}, K={row['draws']}" for row in ours]
    right.barh(names[::-1], [row["median_ms"] / ordinary(growth, row)["median_ms"] for row in ours][::-1])
    right.set(xlabel="book-keeping step, ordinary = 1")
    figure.tight_layout()
    figure.savefig(file, dpi=90, metadata={"Software": None})
    plt.close(figure)


def main() -> None:
    parser = ArgumentParser(description=__doc__, add_option_string_dash_variants=DashVariant.DASH)
    parser.add_arguments(Flags, dest="flags")
    flags = parser.parse_args().flags
    rows: list[dict] = []
    print(
        "| network | batch | draws | engine | ms a step | ratio | peak MiB | ratio |\n|---|---|---|---|---|---|---|---|"
    )
    for network, batch in CELLS:
        engines = OWN if batch == 256 else [ORDINARY[1], OURS]
        peers = PEERS if flags.peers and batch == 256 else []
        rows += measure([*engines, *EXTRA.get((network, batch), []), *peers], network, batch, 1, flags)
    growth = [row for network, draws in GROWTH for row in measure([ORDINARY[1], OURS], network, 256, draws, flags)]
    packages = ("tensorflow", "keras", "tensorflow-privacy", "numpy")
    pins = (ROOT / "requirements-bench.txt").read_text(encoding="utf-8").split()
    result = {
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()},
        "versions": {package: version(package) for package in packages}
        | dict(pin.split("==") for pin in pins if "==" in pin and flags.peers),
        "rows": rows,
        "growth": growth,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "speed.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    draw(rows, growth, RESULTS / "speed.png")


if __name__ == "__main__":
    main()
