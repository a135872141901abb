"""How useful are the releases? Ways of pre-training at equal ε, beside published figures, by the field's protocols.

    python benchmarks/utility.py --fashion FILE.npz                 # all cells that are missing, the telling ones first
    python benchmarks/utility.py --datasets mnist --epsilons 1 --methods dreams --seeds 0
    python benchmarks/utility.py --table                            # prints what there is

A cell is one `train.py` and one `evaluate.py`, printed as they are run: each is reproduced by these two lines. Cells that
benchmarks/results/utility.json holds are not run again, and a trained run whose row lacks figures is only evaluated, so the
command can be interrupted at any time and goes on where it stopped. `--verify` re-runs one row.
"""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from simple_parsing import ArgumentParser, DashVariant

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "utility.json"
PUBLISHED = ROOT / "benchmarks" / "results" / "published.json"
RUNS = Path("runs") / "utility"

# From scratch the decoder needs more steps and a higher rate than after dreams.
_FROM_SCRATCH = "--steps 300 --learning-rate 2e-3"
METHODS = {
    "dreams": "--pretrain dreams",
    "unprotected": f"--pretrain unprotected {_FROM_SCRATCH}",
    "public": "--pretrain public {public}",
    "none": f"--pretrain none {_FROM_SCRATCH}",
    **{f"unprotected-{n}": f"--pretrain unprotected --pretrain-epochs {n} {_FROM_SCRATCH}" for n in (1, 5, 20)},
}
AMOUNTS = {"none": 0, "unprotected-1": 1, "unprotected-5": 5, "unprotected-20": 20}
GIVEN_ENCODER = "decoder, given the encoder"
KEY = ("dataset", "epsilon", "method", "seed")
FIGURES = ("acc_lr", "acc_mlp", "acc_cnn", "fid", "fid_samples")


@dataclass(frozen=True)
class Flags:
    """The utility benchmark.

    Attributes:
      datasets: mnist, fashion_mnist, or both, separated by commas.
      fashion: Fashion-MNIST as an .npz for train.py; by default the one in shared/data.
      public: public data for --pretrain public on MNIST, an .npz; by default USPS in shared/data (Fashion has MNIST).
      epsilons: values of epsilon, separated by commas.
      methods: ways of pre-training, separated by commas; by default the four main ones, then the amounts.
      seeds: public seeds, separated by commas; other epsilons than 1 and the amounts get the first.
      epochs: of the evaluating CNN.
      fid_samples: images a side for FID.
      table: only print the tables.
      verify: re-run one random row and compare, instead.
    """

    datasets: str = "mnist,fashion_mnist"
    fashion: Path | None = None
    public: Path | None = None
    epsilons: str = "1,0.2,10"
    methods: str = ",".join(METHODS)
    seeds: str = "0,1,2"
    epochs: int = 5
    fid_samples: int = 5_000
    table: bool = False
    verify: bool = False


@dataclass(frozen=True)
class Cell:
    """One training and its evaluation."""

    dataset: str
    epsilon: float
    method: str
    seed: int

    @property
    def name(self) -> str:
        """The run's folder name."""
        return f"{self.dataset}-{self.method}-eps{self.epsilon:g}-seed{self.seed}"

    def train_command(self, flags: Flags, name: str) -> str:
        """The line that trains."""
        data, method = self._data(flags), METHODS[self.method]
        if self.method == "public":
            public = "--public-dataset mnist" if data else f"--public-data {_file(flags.public, 'usps.npz')}"
            method = method.format(public=public)
        return f"train.py --epsilon {self.epsilon:g} {method} --seed {self.seed}{data} --runs {RUNS} --name {name}"

    def evaluate_command(self, flags: Flags, name: str) -> str:
        """The line that evaluates."""
        data = self._data(flags)
        return (
            f"evaluate.py {RUNS / name} --parts fidelity,usefulness --epochs {flags.epochs} "
            f"--fid-samples {flags.fid_samples} --seed {self.seed}{data}"
        )

    def _data(self, flags: Flags) -> str:
        return "" if self.dataset == "mnist" else f" --data {_file(flags.fashion, 'fashion_mnist.npz')}"


def _file(named: Path | None, usual: str) -> str:
    """A path as seen from the project's root: that of `shared/data` inside or beside it where none is named."""
    if named is not None:
        return shlex.quote(os.path.relpath(named, ROOT))
    places = [folder / "shared" / "data" / usual for folder in (ROOT, ROOT.parent)]
    file = next((file for file in places if file.is_file()), None)
    if file is None:
        sys.exit(f"utility.py: {usual} is not in shared/data: name it (--fashion, --public), or leave those cells out.")
    return shlex.quote(os.path.relpath(file, ROOT))


def cells(flags: Flags) -> Iterator[Cell]:
    """What is to be measured: ε = 1 for all seeds, then everything else for the first."""
    epsilons = sorted(map(float, flags.epsilons.split(",")), key=lambda epsilon: epsilon != 1)
    seeds, methods = [int(seed) for seed in flags.seeds.split(",")], flags.methods.split(",")
    unknown = [name for name in methods if name not in METHODS]
    if unknown:
        sys.exit(f"utility.py: method {unknown[0]!r} is not known: choose from {', '.join(METHODS)}.")
    for main in (True, False):
        for seed in seeds:
            for dataset in flags.datasets.split(","):
                for epsilon in epsilons:
                    for method in methods:
                        is_main = epsilon == 1 and "-" not in method
                        wanted = seed == seeds[0] or is_main
                        if wanted and is_main is main and not ("-" in method and epsilon != 1):
                            yield Cell(dataset, epsilon, method, seed)


def run(command: str, log: Path) -> float:
    """Runs a line of the project; seconds it took."""
    print(f"python {command}", flush=True)
    start = time.perf_counter()
    with log.open("a", encoding="utf-8") as file:
        done = subprocess.run([sys.executable, *shlex.split(command)], cwd=ROOT, check=False, stdout=file, stderr=file)
    if done.returncode:
        sys.exit(f"utility.py: that failed; the last lines of {os.path.relpath(log, ROOT)} say why.")
    return time.perf_counter() - start


def measure(cell: Cell, flags: Flags, row: dict | None, keep: Callable[[dict], None], name: str) -> dict:
    """Trains where there is no release yet, evaluates; `keep` is given the row after each."""
    folder = ROOT / RUNS / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = folder.parent / f"{name}.log"
    row = {**dict(zip(KEY, (cell.dataset, cell.epsilon, cell.method, cell.seed))), **(row or {"train_seconds": None})}
    if not (folder / "release").is_dir():
        shutil.rmtree(folder, ignore_errors=True)
        row["train_seconds"] = round(run(cell.train_command(flags, name), log))
        keep(row)
    run(cell.evaluate_command(flags, name), log)
    report = json.loads((folder / "private" / "evaluation" / "report.json").read_text(encoding="utf-8"))
    # Without Inception weights a report has no FID, and the row stays open.
    row |= {figure: rounded(report.get(figure)) for figure in FIGURES}
    row |= {figure: report[figure] for figure in ("samples", "classifier_epochs")}
    row["on_records"] = {figure: rounded(report[f"{figure}_on_records"]) for figure in FIGURES[:3]}
    keep(row)
    return row


def rounded(value: float | None) -> float | None:
    """Four digits after the point."""
    return None if value is None else round(value, 4)


def load(file: Path | None = None) -> list[dict]:
    """The rows of a results file, by default this benchmark's, so far."""
    file = file or RESULTS
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []


def store(row: dict) -> None:
    """Puts a row in the place of its cell's. Reads anew, so that two commands on different cells do not undo each other."""
    rows = [other for other in load() if [other[k] for k in KEY] != [row[k] for k in KEY]] + [row]
    unfinished = RESULTS.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    os.replace(unfinished, RESULTS)


def find(rows: list[dict], cell: Cell) -> dict | None:
    """The cell's row."""
    return next((row for row in rows if all(row[name] == getattr(cell, name) for name in KEY)), None)


def complete(row: dict | None) -> bool:
    """Whether every figure was measured."""
    return row is not None and all(row.get(figure) is not None for figure in FIGURES)


def spread(values: list[float | None], digits: int, factor: float = 1) -> str:
    """Mean ± deviation, or a dash."""
    known = [factor * value for value in values if value is not None]
    if not known:
        return "–"
    deviation = f" ± {stdev(known):.{digits}f}" if len(known) > 1 else ""
    return f"{mean(known):.{digits}f}{deviation}"


def line(group: list[dict], name: str, guarantee: str) -> str:
    """One line of a table."""
    figures = [spread([row.get(f) for row in group], 1, 100) for f in FIGURES[:3]]
    figures.append(spread([row.get("fid") for row in group], 1))
    sizes = "/".join(sorted({f"{row['fid_samples']:,}" for row in group if row.get("fid_samples")})) or "–"
    minutes = spread([row.get("train_seconds") for row in group], 1, 1 / 60)
    return f"| {name} | {guarantee} | {' | '.join(figures)} | {sizes} | {len(group)} | {minutes} |"


def table(rows: list[dict], published: list[dict]) -> str:
    """Every method's mean and deviation over seeds, beside published figures."""
    head = "| method | guarantee | LR % | MLP % | CNN % | FID | FID's images a side | seeds | training, minutes |"
    parts = []
    for dataset, epsilon in sorted({(row["dataset"], row["epsilon"]) for row in rows}, reverse=True):
        here = [row for row in rows if (row["dataset"], row["epsilon"]) == (dataset, epsilon)]
        parts += [f"\n**{dataset}, ε = {epsilon:g}**\n", head, "|---|---|---|---|---|---|---|---|---|"]
        for method in dict.fromkeys(row["method"] for row in here if "-" not in row["method"]):
            guarantee = GIVEN_ENCODER if method == "unprotected" else "end to end"
            parts.append(line([row for row in here if row["method"] == method], method, guarantee))
        real = [row["on_records"] for row in here if row.get("on_records")]
        if real:
            figures = " | ".join(spread([row[figure] for row in real], 1, 100) for figure in FIGURES[:3])
            parts.append(f"| real training images | none | {figures} | – | – | {len(real)} | – |")
        for peer in published:
            if (peer["dataset"], peer["epsilon"]) == (dataset, epsilon):
                figures = " | ".join("–" if peer[f] is None else f"{peer[f]:g}" for f in FIGURES[:4])
                parts.append(f"| {peer['method']}, as published | end to end | {figures} | 60,000 | – | – |")
    return "\n".join(parts)


def amounts_table(rows: list[dict]) -> str:
    """What more pre-training on records without noise does, at equal ε of the decoder given the encoder."""
    lines = [
        "\n**Effect of the amount of pre-training on the records (`unprotected`), ε = 1 given the encoder**\n",
        "| data, epochs | guarantee | LR % | MLP % | CNN % | FID | FID's images a side | seeds | training, minutes |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for dataset in dict.fromkeys(row["dataset"] for row in rows):
        for method, epochs in AMOUNTS.items():
            group = [r for r in rows if (r["dataset"], r["epsilon"], r["method"]) == (dataset, 1.0, method)]
            if group:
                lines.append(line(group, f"{dataset}, {epochs}", GIVEN_ENCODER if epochs else "end to end"))
    return "\n".join(lines)


def verify(flags: Flags) -> None:
    """Re-runs one row. Noise is fresh each time, so figures agree only within their spread over runs."""
    row = random.choice([row for row in load() if complete(row)])
    cell = Cell(*(row[name] for name in KEY))
    name = f"verify-{cell.name}"
    shutil.rmtree(ROOT / RUNS / name, ignore_errors=True)
    again = measure(cell, flags, None, lambda _: None, name)
    for figure in FIGURES[:4]:
        print(f"{figure}: before {row[figure]:.4f}, now {again[figure]:.4f}, {again[figure] - row[figure]:+.4f}")


def main() -> None:
    parser = ArgumentParser(description=__doc__, add_option_string_dash_variants=DashVariant.DASH)
    parser.add_arguments(Flags, dest="flags")
    flags = parser.parse_args().flags
    if flags.verify:
        verify(flags)
        return
    for cell in [] if flags.table else cells(flags):
        row = find(load(), cell)
        if not complete(row):
            measure(cell, flags, row, store, cell.name)
    print(table(load(), load(PUBLISHED)))
    print(amounts_table(load()))


if __name__ == "__main__":
    main()
