"""How useful are the releases? Every way of pre-training at equal ε, several seeds, one table.

    python benchmarks/utility.py                                     # MNIST at ε = 1, three seeds
    python benchmarks/utility.py --data fashion_mnist.npz            # the same for a file

Each cell is one `train.py` and one `evaluate.py`, as printed; cells that benchmarks/results/utility.json holds already are
not run again, so the command can be interrupted and goes on where it stopped. `--verify` re-runs one row and compares.
"""

from __future__ import annotations

import json
import random
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from simple_parsing import ArgumentParser, DashVariant

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "utility.json"
RUNS = ROOT / "runs" / "utility"

METHODS = {
    "dreams": "--pretrain dreams",
    # From scratch the decoder needs more steps and a higher rate than after dreams.
    "unprotected": "--pretrain unprotected --steps 300 --learning-rate 2e-3",
    "none": "--pretrain none --steps 300 --learning-rate 2e-3",
}
GUARANTEE = {"dreams": "end to end", "unprotected": "decoder, given the encoder", "none": "end to end"}


@dataclass(frozen=True)
class Flags:
    """The utility benchmark.

    Attributes:
      data: an .npz as for train.py; by default MNIST.
      epsilons: values of epsilon, separated by commas.
      methods: ways of pre-training, separated by commas.
      seeds: public seeds, separated by commas.
      epochs: of the evaluating classifier.
      verify: re-run one random row of the results and compare, instead.
    """

    data: Path | None = None
    epsilons: str = "1"
    methods: str = "dreams,unprotected,none"
    seeds: str = "0,1,2"
    epochs: int = 3
    verify: bool = False


@dataclass(frozen=True)
class Cell:
    """One training and its evaluation."""

    data: Path | None
    epsilon: float
    method: str
    seed: int
    epochs: int

    @property
    def dataset(self) -> str:
        """Name for the table."""
        return self.data.stem if self.data else "mnist"

    @property
    def run(self) -> Path:
        """The run's folder."""
        return RUNS / f"{self.dataset}-{self.method}-eps{self.epsilon:g}-seed{self.seed}"

    def commands(self) -> list[str]:
        """The two lines that make the cell."""
        data = f" --data {shlex.quote(str(self.data))}" if self.data else ""
        train = (
            f"train.py --epsilon {self.epsilon:g} {METHODS[self.method]} --seed {self.seed}{data} "
            f"--runs {RUNS.relative_to(ROOT)} --name {self.run.name}"
        )
        return [train, f"evaluate.py {self.run.relative_to(ROOT)} --epochs {self.epochs} --seed {self.seed}"]

    def measure(self) -> dict:
        """Trains and evaluates; the row."""
        shutil.rmtree(self.run, ignore_errors=True)
        self.run.parent.mkdir(parents=True, exist_ok=True)
        seconds = []
        for command in self.commands():
            print(f"python {command}", flush=True)
            start = time.perf_counter()
            with (self.run.parent / f"{self.run.name}.log").open("a", encoding="utf-8") as log:
                subprocess.run([sys.executable, *shlex.split(command)], cwd=ROOT, check=True, stdout=log, stderr=log)
            seconds.append(time.perf_counter() - start)
        report = json.loads((self.run / "private" / "evaluation" / "report.json").read_text(encoding="utf-8"))
        return {
            "dataset": self.dataset,
            "epsilon": self.epsilon,
            "method": self.method,
            "seed": self.seed,
            "acc_cnn": round(report["acc_cnn"], 4),
            "samples": report["samples"],
            "classifier_epochs": self.epochs,
            "train_seconds": round(seconds[0]),
        }


def load() -> list[dict]:
    """The rows so far."""
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else []


def find(rows: list[dict], cell: Cell) -> dict | None:
    """The cell's row."""
    key = (cell.dataset, cell.epsilon, cell.method, cell.seed)
    return next((row for row in rows if (row["dataset"], row["epsilon"], row["method"], row["seed"]) == key), None)


def table(rows: list[dict]) -> str:
    """Mean and deviation over seeds."""
    lines = [
        "| data | ε | pre-training | guarantee | CNN accuracy, mean ± deviation | seeds | training, minutes |",
        "|---|---|---|---|---|---|---|",
    ]
    for dataset, epsilon, method in dict.fromkeys((r["dataset"], r["epsilon"], r["method"]) for r in rows):
        group = [r for r in rows if (r["dataset"], r["epsilon"], r["method"]) == (dataset, epsilon, method)]
        accuracies = [100 * row["acc_cnn"] for row in group]
        spread = f" ± {stdev(accuracies):.1f}" if len(accuracies) > 1 else ""
        minutes = mean(row["train_seconds"] for row in group) / 60
        lines.append(
            f"| {dataset} | {epsilon:g} | {method} | {GUARANTEE[method]} | {mean(accuracies):.1f} %{spread} | {len(group)} "
            f"| {minutes:.1f} |"
        )
    return "\n".join(lines)


def verify(rows: list[dict], flags: Flags) -> None:
    """Re-runs one row; noise is fresh, so the accuracy agrees only within its spread over runs."""
    row = random.choice(rows)
    again = Cell(flags.data, row["epsilon"], row["method"], row["seed"], row["classifier_epochs"]).measure()
    print(
        f"before {row['acc_cnn']:.2%}, now {again['acc_cnn']:.2%}, difference {again['acc_cnn'] - row['acc_cnn']:+.2%}"
    )


def main() -> None:
    parser = ArgumentParser(description=__doc__, add_option_string_dash_variants=DashVariant.DASH)
    parser.add_arguments(Flags, dest="flags")
    flags = parser.parse_args().flags
    data = flags.data.resolve() if flags.data else None
    rows = load()
    if flags.verify:
        verify([row for row in rows if row["dataset"] == (data.stem if data else "mnist")], flags)
        return
    for seed in map(int, flags.seeds.split(",")):
        for epsilon in map(float, flags.epsilons.split(",")):
            for method in flags.methods.split(","):
                cell = Cell(data, epsilon, method, seed, flags.epochs)
                if find(rows, cell) is None:
                    rows.append(cell.measure())
                    RESULTS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
