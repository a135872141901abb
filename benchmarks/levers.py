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
import os
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

from tf_dp2vae import datasets
from tf_dp2vae.commands import parse
from tf_dp2vae.evaluation.classifiers import VALIDATION_ONE_IN, cnn
from tf_dp2vae.evaluation.release import read_release
from tf_dp2vae.recipes import FamilyName
from tf_dp2vae.records import FULL_SCALE

matplotlib.use("Agg")

import matplotlib.pyplot as plt

RESULTS = ROOT / "benchmarks" / "results" / "levers.json"
FOLDER = ROOT / "runs" / "levers"
HELD_OUT, SAMPLES = 10_000, 30_000


@dataclass(frozen=True)
class Lever:
    """One change of a recipe.

    Attributes:
      name: for the table.
      flags: of train.py.
      expected: what was expected of it, before it was run.
      change: of `changed_train.py`, where no flag makes it; several are joined by +.
    """

    name: str
    flags: str
    expected: str
    change: str = ""

    def command(self, family: FamilyName) -> str:
        """What python runs; the family sets what the lever leaves open."""
        program = f"benchmarks/changed_train.py {self.change}" if self.change else "train.py"
        return " ".join(filter(None, [program, f"--family {family}", _COMMON, self.flags]))


REFERENCE = "as it is"
_COMMON = "--batch-size 1024 --steps 150"
"""Before a lever's own flags, which win."""
_OF_BOTH = (
    Lever(
        "no refinement", "--refine-share 0 --moments-share 0.5", "worse: marks of noise, and samples of other classes"
    ),
    Lever("a judge, no matching", "--refine-steps 0", "worse for clothes, which are too smooth to be judged"),
    Lever("matching, no judge", "--candidates 1", "worse: samples of other classes stay"),
    Lever("twice the candidates", "--candidates 8", "a little better: a stricter choice, for free"),
    Lever("twice the matching", "--refine-steps 600", "even: matched by then"),
    Lever("one more convolution", "", "even", "deeper"),
    Lever(
        "Gaussian likelihood", "", "worse: gradients of a few images rule, and the dark ones hardly learn", "gaussian"
    ),
    Lever("a quarter of the KL", "", "better for clothes: sharper pictures", "quarter-kl"),
    Lever("DP-AdamBC", "", "even: weight averages hide what Adam's bias costs", "adam-bc"),
    Lever(
        "no training of the first layer",
        "",
        "even: two thirds less noise, but classes' shapes are made there",
        "frozen-first-layer",
    ),
    Lever("a low-rank update of the first layer", "", "better than none: a tenth of the weights' noise", "low-rank"),
    Lever("weight standardisation", "", "a little better: gradients of one size", "weight-standardised"),
    Lever("PLD accountant", "--accountant pld", "a little better: less noise for the same ε"),
    Lever("no sleep", "--sleep-steps 0", "worse: the encoder knows dreams only"),
    Lever("five rounds", "--rounds 5", "better: an encoder that follows the decoder more closely"),
    Lever("latent prior N(0, I)", "--prior normal", "much worse: the posterior's classes are no standard normals"),
    Lever("latent clip 2 instead of 1.4", "--prior-clip 2", "worse: twice the noise on the prior's covariances"),
    Lever("twice the budget for the prior", "--prior-share 0.1", "a little better there, a little worse elsewhere"),
    Lever("twice the budget for refinement", "--refine-share 0.2 --moments-share 0.35", "even"),
    Lever("more for the dreams", "--moments-share 0.6", "even: better dreams, noisier decoder"),
    Lever("less for the dreams", "--moments-share 0.3", "worse"),
    Lever("longer pre-training", "--pretrain-steps 4000", "even: dreams are learned by then"),
    Lever("half the pre-training", "--pretrain-steps 1000", "even, and a fifth of the time less"),
    Lever("no weight average", "--ema 0", "worse: the last step's noise stays in the weights"),
    Lever("half the steps", "--steps 75", "even"),
    Lever("half the width", "--width 16", "even: fewer weights, less noise, less detail"),
    Lever("half the latent dimensions", "--latent-dim 12", "worse detail, better prior"),
    Lever("twice the latent dimensions", "--latent-dim 48", "worse: a prior of four times as many entries"),
    Lever("twice the steps", "--steps 300", "even: more progress, more noise in each step"),
    Lever("batch 2,048", "--batch-size 2048", "even or a little better, at twice the time"),
    Lever("batch 4,096", "--batch-size 4096", "better: less noise for the same ε"),
    Lever("batch 4,096, twice the steps", "--batch-size 4096 --steps 300", "better still at ε = 10, even at 1"),
    Lever("batch 4,096, four times the steps", "--batch-size 4096 --steps 600", "better still at ε = 10, worse at 1"),
    Lever("4 latent draws", "--draws 4", "better: less variance in each gradient, for time only"),
    Lever("8 copies, shifted by up to 2 pixels", "--draws 8 --shifts 2", "better for digits: more varied gradients"),
)
_HASTE = "worse: noise moves the weights faster than data do"
LEVERS: dict[FamilyName, tuple[Lever, ...]] = {
    "strokes": (
        Lever(REFERENCE, "", "the reference"),
        Lever("no residual block", "--blocks 0", "worse for digits, even for clothes"),
        Lever("two residual blocks", "--blocks 2", "even: depth against noise on its weights"),
        Lever("a constant learning rate", "--schedule constant --learning-rate 1e-3", "a little worse"),
        Lever("twice the learning rate", "--learning-rate 4e-3", _HASTE),
        Lever("latents at a temperature of 1.5", "--temperature 1.5", "better: samples vary less than records do"),
        *_OF_BOTH,
    ),
    "surfaces": (
        Lever(REFERENCE, "", "the reference"),
        Lever("latents at a temperature of 1", "--temperature 1", "worse: samples vary less than records do"),
        Lever("a residual block", "", "even: what it adds is lost to noise on its weights", "residual"),
        Lever(
            "a residual block with group normalisation",
            "--blocks 1",
            "a little better: gradients of one size",
        ),
        Lever(
            "a cosine learning rate",
            "--schedule cosine --learning-rate 2e-3",
            "even: the weight average does its work already",
        ),
        Lever(
            "a residual block with group normalisation, and a cosine learning rate",
            "--blocks 1 --schedule cosine --learning-rate 2e-3",
            "better than each alone",
        ),
        Lever("twice the learning rate", "--learning-rate 2e-3", _HASTE),
        Lever("four times the learning rate", "--learning-rate 4e-3", "better where noise is large, as in nats"),
        Lever("half the learning rate", "--learning-rate 5e-4", "better for clothes, whose dreams are good already"),
        Lever("a cosine learning rate, half as high on average", "--schedule cosine", "the same"),
        *_OF_BOTH,
    ),
}


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


def split(name: str, data: Path | None) -> Path:
    """An .npz of the training images alone: records, and the held-out ones in the place of a test set."""
    dataset = datasets.load_npz(data) if data else datasets.load(name)
    file = FOLDER / f"{dataset.name}-training.npz"
    FOLDER.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(f".{os.getpid()}.npz")  # of another command beside this one, the file stays whole
    with dataset.train.opened() as (images, labels):
        np.savez(
            unfinished,
            x_train=images[:-HELD_OUT],
            y_train=labels[:-HELD_OUT],
            x_test=images[-HELD_OUT:],
            y_test=labels[-HELD_OUT:],
        )
    os.replace(unfinished, file)
    return file


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
