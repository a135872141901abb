"""How useful are the releases? Ways of training at equal ε, beside published figures, by the field's protocols.

    python benchmarks/utility.py                  # all cells that are missing, the telling ones first
    python benchmarks/utility.py --datasets mnist --epsilons 1 --methods dreams --seeds 0           # one cell
    python benchmarks/utility.py --table          # only prints what there is, and draws it
    python benchmarks/utility.py --verify         # runs one row again, at random, and compares

A cell is one `train.py` and one `evaluate.py`, printed as they are run: each is reproduced by these two lines. Cells that
benchmarks/results/utility.json holds are not run again, unless train.py's defaults are others by now, and a trained run
whose row lacks figures, or has a FID of fewer images than asked for, is only evaluated; so the command can be interrupted at
any time and goes on where it stopped. After each cell benchmarks/results/utility.md and its figures are written anew.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from checkout import ROOT
from utility_page import AMOUNTS, FIGURES, write_page

from tf_dp2vae.commands import parse
from tf_dp2vae.flags import TrainFlags

RESULTS = ROOT / "benchmarks" / "results" / "utility.json"
PUBLISHED = ROOT / "benchmarks" / "results" / "published.json"
RUNS = Path("runs") / "utility"

# From scratch the decoder needs more steps and a higher rate than after dreams.
_FROM_SCRATCH = "--steps 300 --learning-rate 2e-3"
_FROM_DREAMS = "--steps 150"
# What pre-training does is compared without what comes after it, which would do the same for each, and by one recipe.
_ALONE = "--refine-share 0 --family surfaces --batch-size 1024"
METHODS = {
    "dreams": "--pretrain dreams",
    "dreams-unrefined": f"--pretrain dreams {_ALONE} {_FROM_DREAMS} --moments-share 0.5",
    "unprotected": f"--pretrain unprotected {_ALONE} {_FROM_SCRATCH}",
    "public": f"--pretrain public {{public}} {_ALONE} {_FROM_DREAMS}",
    "none": f"--pretrain none {_ALONE} {_FROM_SCRATCH}",
    "statistics": "--pretrain statistics",
    "non-private": "--pretrain not-private --pretrain-epochs 30",
    **{
        f"unprotected-{n}": f"--pretrain unprotected --pretrain-epochs {n} {_ALONE} {_FROM_SCRATCH}" for n in (1, 5, 20)
    },
}
NON_PRIVATE = "non-private"
COMPARED = [method for method in METHODS if method != NON_PRIVATE and method not in AMOUNTS or method == "none"]
_SETTINGS, _RECORDS = ("batch_size", "steps", "blocks", "learning_rate", "schedule", "temperature"), 60_000
KEY = ("dataset", "epsilon", "method", "seed")
TOLERANCES = {"acc_lr": 0.04, "acc_mlp": 0.04, "acc_cnn": 0.04, "fid": 0.2}
"""Of --verify: accuracies may differ by as much, FID by this fraction. Three deviations of a difference of two runs."""
_USPS = "usps.npz"


@dataclass(frozen=True)
class Flags:
    """The utility benchmark.

    Attributes:
      datasets: mnist, fashion_mnist, or both, separated by commas.
      fashion: Fashion-MNIST as an .npz for train.py; by default the one in shared/data, else tensorflow-datasets'.
      public: public data for --pretrain public on MNIST, an .npz; by default USPS in shared/data (Fashion has MNIST).
      inception_weights: as for evaluate.py; by default those in shared/data. Without any, rows have no FID and stay open.
      epsilons: values of epsilon, separated by commas.
      methods: ways of training, separated by commas; by default those compared, non-private, then the amounts.
      seeds: public seeds at epsilon 1, separated by commas.
      other_seeds: the same for other epsilons, non-private and the amounts.
      epochs: of the evaluating CNN.
      fid_samples: images a side for FID, against test images.
      table: only print and draw what there is.
      verify: run one random row again and compare, instead.
    """

    datasets: str = "mnist,fashion_mnist"
    fashion: Path | None = None
    public: Path | None = None
    inception_weights: Path | None = None
    epsilons: str = "1,0.2,10"
    methods: str = ",".join(METHODS)
    seeds: str = "0,1,2"
    other_seeds: str = "0"
    epochs: int = 5
    fid_samples: int = 5_000
    table: bool = False
    verify: bool = False


@dataclass(frozen=True)
class Cell:
    """One training and its evaluation."""

    dataset: str
    epsilon: float | None
    method: str
    seed: int

    @property
    def name(self) -> str:
        """The run's folder name."""
        epsilon = "" if self.epsilon is None else f"-eps{self.epsilon:g}"
        return f"{self.dataset}-{self.method}{epsilon}-seed{self.seed}"

    def train_command(self, flags: Flags, name: str) -> str:
        """The line that trains."""
        data, method = self._data(flags), METHODS[self.method]
        if self.method == "public":
            public = "--public-dataset mnist" if data else f"--public-data {_usps(flags.public)}"
            method = method.format(public=public)
        epsilon = "" if self.epsilon is None else f"--epsilon {self.epsilon:g} "
        return f"train.py {epsilon}{method} --seed {self.seed}{data} --runs {RUNS} --name {name}"

    def at_hand(self, flags: Flags) -> bool:
        """Whether its data are: USPS comes with no package."""
        is_usps = self.method == "public" and not self._data(flags)
        return not is_usps or (flags.public or _shared(_USPS)) is not None

    def settings(self, flags: Flags) -> dict[str, Any]:
        """Those of a family's recipe that the cell reads, by today's defaults where its flags leave them open."""
        _, *arguments = shlex.split(self.train_command(flags, self.name))
        resolved = parse(TrainFlags, "", arguments).resolved(_RECORDS)
        return {name: getattr(resolved, name) for name in _SETTINGS if resolved.way.reads(name)}

    def evaluate_command(self, flags: Flags, name: str) -> str:
        """The line that evaluates."""
        data = self._data(flags)
        weights = "" if flags.inception_weights is None else f" --inception-weights {_shown(flags.inception_weights)}"
        return (
            f"evaluate.py {RUNS / name} --parts fidelity,usefulness --epochs {flags.epochs} "
            f"--fid-samples {flags.fid_samples} --fid-against test --seed {self.seed}{data}{weights}"
        )

    def _data(self, flags: Flags) -> str:
        if self.dataset == "mnist":
            return ""
        file = flags.fashion or _shared("fashion_mnist.npz")
        return f" --dataset {self.dataset}" if file is None else f" --data {_shown(file)}"


def _usps(named: Path | None) -> str:
    file = named or _shared(_USPS)
    if file is None:
        sys.exit(
            f"utility.py: {_USPS} is not in shared/data: name public data (--public), or leave those --methods out."
        )
    return _shown(file)


def _shared(name: str) -> Path | None:
    """A file of `shared/data` inside the project or beside it, where there is one."""
    places = [folder / "shared" / "data" / name for folder in (ROOT, ROOT.parent)]
    return next((file for file in places if file.is_file()), None)


def _shown(file: Path) -> str:
    """A path as seen from the project's root."""
    return shlex.quote(os.path.relpath(file, ROOT))


def cells(flags: Flags) -> Iterator[Cell]:
    """What is to be measured: ε = 1 for all seeds, non-private, other ε, then the amounts of pre-training."""
    methods, datasets = flags.methods.split(","), flags.datasets.split(",")
    unknown = [name for name in methods if name not in METHODS]
    if unknown:
        sys.exit(f"utility.py: method {unknown[0]!r} is not known: choose from {', '.join(METHODS)}.")
    epsilons = [float(epsilon) for epsilon in flags.epsilons.split(",")]
    seeds, others = ([int(seed) for seed in text.split(",")] for text in (flags.seeds, flags.other_seeds))
    at_one, elsewhere = [e for e in epsilons if e == 1], [e for e in epsilons if e != 1]
    amounts = [method for method in AMOUNTS if method not in COMPARED]
    groups: list[tuple[Sequence[float | None], list[str], list[int]]] = [
        (at_one, COMPARED, seeds),
        ([None], [NON_PRIVATE], others),
        (elsewhere, COMPARED, others),
        (at_one, amounts, others),
    ]
    for wanted, names, wanted_seeds in groups:
        for seed, dataset, epsilon in itertools.product(wanted_seeds, datasets, wanted):
            yield from (Cell(dataset, epsilon, name, seed) for name in names if name in methods)


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
    empty = dict.fromkeys((*KEY, *FIGURES, "train_seconds"))
    row = {**empty, **(row or {}), **{name: getattr(cell, name) for name in KEY}, "settings": cell.settings(flags)}
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


def complete(row: dict | None, fid_samples: int = 0) -> bool:
    """Whether every figure was measured, FID on at least so many images."""
    return row is not None and all(row.get(f) is not None for f in FIGURES) and row["fid_samples"] >= fid_samples


def verify(flags: Flags) -> bool:
    """Runs one row again. Noise is fresh each time, so figures agree only within the tolerance, which is printed."""
    cells_of_rows = [(Cell(*(row[name] for name in KEY)), row) for row in load() if complete(row)]
    # Rows by other defaults than today's are not what the command would give.
    cell, row = random.choice(
        [
            (cell, row)
            for cell, row in cells_of_rows
            if cell.at_hand(flags) and row.get("settings") == cell.settings(flags)
        ]
    )
    flags = replace(flags, epochs=row["classifier_epochs"], fid_samples=row["fid_samples"])
    name = f"verify-{cell.name}"
    shutil.rmtree(ROOT / RUNS / name, ignore_errors=True)
    again = measure(cell, flags, None, lambda _: None, name)
    good = True
    for figure, tolerance in TOLERANCES.items():
        if again[figure] is None:
            print(f"{figure}: was {row[figure]:.4f}, is not measured without Inception weights")
            continue
        allowed = tolerance * (row[figure] if figure == "fid" else 1)
        difference = again[figure] - row[figure]
        good &= abs(difference) <= allowed
        verdict = "agrees" if abs(difference) <= allowed else "DIFFERS"
        print(f"{figure}: was {row[figure]:.4f}, is {again[figure]:.4f}, {difference:+.4f} (±{allowed:.4f}): {verdict}")
    return good


def main() -> None:
    flags = parse(Flags, __doc__)
    if flags.verify:
        sys.exit(0 if verify(flags) else "utility.py: the row was not reproduced within its tolerance.")
    for cell in [] if flags.table else cells(flags):
        row = find(load(), cell)
        if row is not None and row.get("settings") != cell.settings(flags):
            shutil.rmtree(ROOT / RUNS / cell.name, ignore_errors=True)
            row = None
        if not complete(row, flags.fid_samples):
            measure(cell, flags, row, store, cell.name)
            write_page(load(), load(PUBLISHED), RESULTS.parent)
    print(write_page(load(), load(PUBLISHED), RESULTS.parent))


if __name__ == "__main__":
    main()
