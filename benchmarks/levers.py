"""What each setting is worth: a recipe with one lever moved at a time, at equal ε.

    python benchmarks/levers.py                                            # MNIST
    python benchmarks/levers.py --family surfaces --dataset fashion_mnist  # or --data FILE.npz

Every lever is moved at batches of 1,024 and 150 steps, for surfaces an eighth of the recipe's work; the levers of batch and
steps tell what that work is worth. Nothing is measured on test images: the last 10,000 *training* images are held out, the
rest are the records. A CNN trained on 30,000 samples is tested on the held-out part. Rows go to
benchmarks/results/levers.json; those that stand there are not run again. Two commands may run side by side, for two data
sets or by --only.

    python benchmarks/levers.py --epsilon 10 --only steps --seeds 0,1,2  # some levers, elsewhere
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import matplotlib
import numpy as np
from checkout import ROOT
from held_out import FOLDER, split
from lever_list import LEVERS, REFERENCE, Lever

from tf_dp2vae import datasets
from tf_dp2vae.commands import parse
from tf_dp2vae.evaluation.classifiers import VALIDATION_ONE_IN, cnn
from tf_dp2vae.evaluation.release import read_release
from tf_dp2vae.recipes import FamilyName
from tf_dp2vae.records import FULL_SCALE

matplotlib.use("Agg")

import matplotlib.pyplot as plt

RESULTS = ROOT / "benchmarks" / "results" / "levers.json"
SAMPLES = 30_000


@dataclass(frozen=True)
class Flags:
    """The levers.

    Attributes:
      family: whose recipe the levers are moved in, as for train.py.
      dataset: real data, as for train.py.
      data: an .npz, instead of --dataset.
      epsilon: target epsilon.
      seeds: public seeds, separated by commas.
      epochs: of the evaluating classifier.
      only: run only the lever of this name; where none has it, those whose names contain it.
    """

    family: FamilyName = "strokes"
    dataset: str = "mnist"
    data: Path | None = None
    epsilon: float = 1.0
    seeds: str = "0"
    epochs: int = 3
    only: str = ""


def measure(lever: Lever, seed: int, data: Path, flags: Flags) -> float:
    """Accuracy on the held-out training images."""
    place = LEVERS[flags.family].index(lever)
    run = FOLDER / f"{data.stem}-{flags.family}-eps{flags.epsilon:g}-{place}-seed{seed}"
    shutil.rmtree(run, ignore_errors=True)
    file, root = data.relative_to(ROOT), FOLDER.relative_to(ROOT)
    where = shlex.join(["--data", str(file), "--runs", str(root), "--name", run.name])
    command = f"{lever.command(flags.family)} --epsilon {flags.epsilon:g} --seed {seed} {where}"
    print("python", command, flush=True)
    subprocess.run([sys.executable, *shlex.split(command)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    release = read_release(run)
    train, validation = (
        release.samples(num, seed) for num, seed in ((SAMPLES, 2 * seed), (SAMPLES // VALIDATION_ONE_IN, 2 * seed + 1))
    )
    test = datasets.load_npz(data).test
    assert test is not None
    with test.opened() as (images, labels):
        held_out = images.astype(np.float32) / FULL_SCALE, labels
    return round(cnn(train, validation, held_out, 10, flags.epochs, seed).accuracy, 4)


Setting = tuple[str, FamilyName, float, str]
Accuracies = dict[Setting, dict[str, list[float]]]


def accuracies_of(rows: list[dict]) -> Accuracies:
    """For each setting, for each lever that was measured there, in per cent: a number a seed.

    A setting is a data set, a family, ε, and what the recipe still lacked then; empty for today's.
    """
    found: Accuracies = {}
    for row in rows:
        setting = row["dataset"].removesuffix("-training"), row["family"], row["epsilon"], row.get("before", "")
        found.setdefault(setting, {}).setdefault(row["lever"], []).append(100 * row["accuracy"])
    return dict(sorted(found.items(), key=lambda item: (item[0][3], item[0][1], item[0][0] != "mnist", item[0][2])))


def _recipe(family: FamilyName, before: str) -> str:
    return f"{family}, before {before}" if before else family


def table(rows: list[dict]) -> str:
    """One line a lever, beside the mean of the recipe as it is."""
    lines = [
        "| data | recipe | ε | lever | flags | expected | accuracy, % | to the recipe | seeds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (dataset, family, epsilon, before), of_lever in accuracies_of(rows).items():
        reference = mean(of_lever.get(REFERENCE, [float("nan")]))
        for lever in LEVERS[family]:
            if values := of_lever.get(lever.name):
                flags = f"`{lever.flags}`" if lever.flags else lever.change
                lines.append(
                    f"| {dataset} | {_recipe(family, before)} | {epsilon:g} | {lever.name} | {flags} | {lever.expected} "
                    f"| {mean(values):.1f} | {mean(values) - reference:+.1f} | {len(values)} |"
                )
    return "\n".join(lines)


def draw(rows: list[dict], file: Path) -> None:
    """What each lever does to its recipe's accuracy, a panel a data set, family and ε, a dot a seed."""
    panels = {key: found for key, found in accuracies_of(rows).items() if REFERENCE in found and len(found) > 1}
    if not panels:
        return
    all_names = dict.fromkeys(lever.name for family in LEVERS for lever in LEVERS[family])
    names = [name for name in all_names if any(name in found for found in panels.values())]
    figure, axes = plt.subplots(
        1, len(panels), figsize=(3 + 4 * len(panels), 1 + 0.27 * len(names)), sharex=True, sharey=True
    )
    for axis, ((dataset, family, epsilon, before), found) in zip(np.atleast_1d(axes), panels.items()):
        reference = mean(found[REFERENCE])
        for place, name in enumerate(names):
            values = found.get(name, [])
            axis.barh(place, (mean(values) - reference) if values else 0, color="tab:blue", alpha=0.4)
            axis.plot([value - reference for value in values], [place] * len(values), "o", color="tab:blue", ms=4)
        axis.axvline(0, color="black", lw=0.8)
        axis.set_title(f"{dataset}, ε = {epsilon:g}\n{_recipe(family, before)}: {reference:.1f} %", fontsize=10)
        axis.set_xlabel("points of CNN accuracy to the recipe")
        axis.set_yticks(range(len(names)), names)
        axis.grid(axis="x", alpha=0.3)
    np.atleast_1d(axes)[0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)


def stored() -> list[dict]:
    """The rows measured so far."""
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else []


def main() -> None:
    flags = parse(Flags, __doc__)
    data = split(flags.dataset, flags.data)
    levers = LEVERS[flags.family]
    named = [lever for lever in levers if lever.name == flags.only]
    chosen = named or [lever for lever in levers if flags.only in lever.name]
    for seed in map(int, flags.seeds.split(",")):
        for lever in chosen:
            row = {"dataset": data.stem, "family": flags.family, "epsilon": flags.epsilon}
            row |= {"lever": lever.name, "seed": seed}
            known = [{name: old[name] for name in row} for old in stored() if "before" not in old]
            if row not in known:
                row["accuracy"] = measure(lever, seed, data, flags)
                rows = [*stored(), row]
                RESULTS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    draw(stored(), RESULTS.with_suffix(".png"))
    print(table(stored()))


if __name__ == "__main__":
    main()
