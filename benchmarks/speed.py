"""What a private step costs: ours, the ordinary step, tensorflow-privacy, Opacus and JAX on the same networks.

    python benchmarks/speed.py --peers .venv-bench/bin/python

Every engine takes the whole step: encoder forward, clipped sum, noise, Adam. Each runs in a process of its own, so that its
memory is its own; they take turns of a tenth of a second (at least one step), and those that wait are stopped, so that what
else the machine does falls on all alike. Figures are medians of turns. Without `--peers` (an interpreter with
requirements-bench.txt) only the TensorFlow engines run. Rows go to benchmarks/results/speed.json, the pictures to
benchmarks/results/speed.png. A run that was cut short goes on with `--resume`; about 20 to 25 minutes in all on two quiet
cores. tensorflow-privacy's own paths may ask for more memory than there is: they are given a bound, and an engine of others
that does not start is left out and named.
"""

from __future__ import annotations

import json
import os
import platform
import re
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
TENSORFLOW_PRIVACY = ["tfp-vectorized", "tfp-loop"]
# Its Jacobian on the larger network, gigabytes for a few dozen examples, is asked for at the smallest batch only.
EXTRA = {
    ("mnist-conv", 256): TENSORFLOW_PRIVACY,
    ("table-mlp", 256): TENSORFLOW_PRIVACY,
    ("colour-conv", 256): ["tfp-loop"],
    ("colour-conv", 64): ["tfp-vectorized"],
}
CELLS = [
    *((network, 256) for network in ("mnist-conv", "table-mlp")),
    *((network, batch) for batch in (1024, 4096) for network in ("mnist-conv", "table-mlp")),
    *(("mnist-conv", 64), ("table-mlp", 64)),
    *(("colour-conv", batch) for batch in (256, 64, 1024)),
]
# oneDNN's kernels are TensorFlow's own choice on some processors and have to be asked for on others; the ordinary step is
# faster with them too.
KERNELS = {"TF_ENABLE_ONEDNN_OPTS": "1"}
HEADER = (
    "| network | batch | draws | engine | ms a step | ratio | peak MiB | ratio |\n|---|---|---|---|---|---|---|---|"
)
GROWTH = [
    *((f"weights:{factor}", 1) for factor in (1, 2, 8)),
    *((f"side:{factor}", 1) for factor in (1, 2, 3)),
    *(("mnist-conv", draws) for draws in (2, 4, 8)),
]


@dataclass(frozen=True)
class Flags:
    """The speed benchmark.

    Attributes:
      peers: the interpreter of an environment with requirements-bench.txt; empty leaves its engines out.
      turns: for each engine and batch; three where a step takes a second or more, two for tensorflow-privacy's own.
      resume: measure only what speed.json does not hold yet.
      table: measure nothing; print the table of speed.json and draw its pictures.
    """

    peers: str = ""
    turns: int = 11
    resume: bool = False
    table: bool = False


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
            env={**os.environ, **KERNELS, "PYTHONPATH": PATH},
        )
        self._command = f"PYTHONPATH={PATH} {' '.join(command)}"

    def suspend_when_ready(self) -> bool:
        """Waits for the first steps, which compile. False: an engine of others has ended instead, and says so.

        Raises:
          RuntimeError: the same of an engine that every row needs.
        """
        ready = self._read() == "ready"
        if not ready and self.engine in OWN:
            raise RuntimeError(f"{self.engine} did not start; to see why: {self._command}")
        if ready:
            self._process.send_signal(signal.SIGSTOP)
        else:
            print(f"{self.engine} is left out: it did not start; to see why: {self._command}", flush=True)
        return ready

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
        yield [worker for worker in started if worker.suspend_when_ready()]
    finally:
        for worker in started:
            worker.close()


def measure(engines: list[str], network: str, batch: int, draws: int, flags: Flags) -> list[dict]:
    """Interleaved timings, then peak memory, of all engines on one network and batch."""
    with workers(engines, network, batch, draws, flags.peers) as running:
        times: dict[str, list[float]] = {worker.engine: [] for worker in running}
        for turn in range(flags.turns):
            for worker in running:
                known = times[worker.engine]
                if turn < 2 or worker.engine not in TENSORFLOW_PRIVACY and (turn < 3 or min(known) < 1e3):
                    known.append(worker.ask("step"))
        rows = [
            {
                "network": network,
                "batch": batch,
                "draws": draws,
                "engine": worker.engine,
                "median_ms": round(median(times[worker.engine]), 2),
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
    panels = 3 if growth else 2
    figure, (left, middle, *right) = plt.subplots(1, panels, figsize=(5.4 * panels, 5))
    engines = sorted({row["engine"] for row in rows if row["batch"] == 256})
    networks = list(dict.fromkeys(row["network"] for row in rows))
    for color, network in enumerate(networks):
        points = [row for row in rows if row["network"] == network and row["batch"] == 256]
        ratios = [row["median_ms"] / ordinary(rows, row)["median_ms"] for row in points]
        left.scatter(ratios, [engines.index(row["engine"]) for row in points], color=f"C{color}", label=network)
    left.legend(loc="upper right", bbox_to_anchor=(1, -0.12), ncol=3)
    left.grid(axis="x", alpha=0.3)
    left.set(xscale="log", xlabel="time of a step at batch 256, ordinary = 1", yticks=range(len(engines)))
    left.set_yticklabels(engines)
    for color, network in enumerate(networks):
        for engine, style in ((OURS, "-o"), (ORDINARY[1], "--")):
            points = [r for r in rows if r["network"] == network and r["engine"] == engine]
            points.sort(key=lambda r: r["batch"])
            rates = [1e3 * r["batch"] / r["median_ms"] for r in points]
            middle.plot([r["batch"] for r in points], rates, style, color=f"C{color}", label=f"{network}, {engine}")
    middle.set(xscale="log", yscale="log", xlabel="batch", ylabel="examples a second")
    middle.legend(fontsize=7, loc="upper left", bbox_to_anchor=(0, -0.12), ncol=2)
    ours = [row for row in growth if row["engine"] == OURS]
    names = [f"{row['network']}, K={row['draws']}" for row in ours]
    for axis in right:
        axis.barh(names[::-1], [row["median_ms"] / ordinary(growth, row)["median_ms"] for row in ours][::-1])
        axis.set(xlabel="book-keeping step, ordinary = 1")
    figure.tight_layout()
    figure.savefig(file, dpi=90, metadata={"Software": None})
    plt.close(figure)


def engines_for(network: str, batch: int, peers: bool) -> list[str]:
    """Everybody at batch 256, ours and the ordinary step elsewhere."""
    extra = EXTRA.get((network, batch), [])
    if batch != 256:
        return [*ORDINARY, OURS, *extra]
    return [*OWN, *extra, *(PEERS if peers else [])]


def machine() -> dict[str, str | int | None]:
    """What the figures hold for."""
    told = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.+)", told.read_text(encoding="utf-8")) if told.exists() else []
    processor = names[0] if names else platform.machine()
    return {"processor": processor, "cores": os.cpu_count(), "python": platform.python_version(), **KERNELS}


def versions(peers: bool) -> dict[str, str]:
    """Of the packages that were timed."""
    own = {package: version(package) for package in ("tensorflow", "keras", "tensorflow-privacy", "numpy")}
    pins = (ROOT / "requirements-bench.txt").read_text(encoding="utf-8").split()
    return own | dict(pin.split("==") for pin in pins if "==" in pin and peers)


def main() -> None:
    parser = ArgumentParser(description=__doc__, add_option_string_dash_variants=DashVariant.DASH)
    parser.add_arguments(Flags, dest="flags")
    flags = parser.parse_args().flags
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no engine is left behind, stopped
    file = RESULTS / "speed.json"
    kept = json.loads(file.read_text(encoding="utf-8")) if flags.resume or flags.table else {"rows": [], "growth": []}
    result = {"machine": machine(), "versions": versions(bool(flags.peers))} | kept
    cells = [("rows", network, batch, 1, engines_for(network, batch, bool(flags.peers))) for network, batch in CELLS]
    cells += [("growth", network, 256, draws, [*ORDINARY, OURS]) for network, draws in GROWTH]
    for section, network, batch, draws, engines in cells if not flags.table else []:
        known = {(row["network"], row["batch"], row["draws"]) for row in result[section]}
        if (network, batch, draws) not in known:
            result[section] += measure(engines, network, batch, draws, flags)
            file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(HEADER, table(result["rows"]), table(result["growth"]), sep="\n")
    draw(result["rows"], result["growth"], RESULTS / "speed.png")


if __name__ == "__main__":
    main()
