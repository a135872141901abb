"""What settings of the private phase are worth, in nats: held-out negative ELBO, after one pre-training for all of them.

    python benchmarks/private_phase.py                                  # MNIST at ε = 1, four rates
    python benchmarks/private_phase.py --dataset fashion_mnist --epsilons 0.2,1,10 --rates 1e-3,4e-3 --repeats 3
    python benchmarks/private_phase.py --settings 300x4096 --rates 1e-3  # other steps and batches
    python benchmarks/private_phase.py --repeats 0                       # only prints and draws what there is

Accuracies of whole runs differ by half a point or a point from one to the next, and take minutes each. The bound that the
private phase lowers differs by one or two tenths of a nat, and takes a minute: the encoder and decoder that dreams made are
put back before each setting, so nothing but the private steps, their noise and the sleep between them differs. Another call
has another pre-training, with noise of its own: compare rows of one call. Nothing is measured on test images: the last
10,000 *training* images are held out, the rest are the records. Budget, noise, prior's release and
sleep are the default's; refinement keeps its share of the budget and is left out. Rows go to
benchmarks/results/private_phase.json.
"""

from __future__ import annotations

import checkout  # noqa: F401 - before whatever imports TensorFlow or the package

# isort: split
import json
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import matplotlib
import numpy as np
from held_out import split

from tf_dp2vae import datasets
from tf_dp2vae.accounting import Privacy
from tf_dp2vae.commands import parse
from tf_dp2vae.flags import TrainFlags
from tf_dp2vae.from_flags import make_networks, make_optimizer, make_pretraining, make_prior
from tf_dp2vae.model import DP2VAE
from tf_dp2vae.pretraining import Dreams
from tf_dp2vae.recipes import FamilyName, ScheduleName, family_of
from tf_dp2vae.records import Records
from tf_dp2vae.refinement import Refinement

matplotlib.use("Agg")

import matplotlib.pyplot as plt

RESULTS = Path(__file__).parent / "results" / "private_phase.json"
Row = dict[str, Any]


@dataclass(frozen=True)
class Flags:
    """The private phase.

    Attributes:
      dataset: real data, as for train.py.
      data: an .npz, instead of --dataset.
      family: whose networks are trained; by-name as for train.py.
      epsilons: targets, separated by commas.
      rates: Adam's learning rates at their start, separated by commas.
      schedules: constant, cosine, or both, separated by commas.
      settings: private steps x expected batch, separated by commas.
      repeats: private phases for each setting, with fresh noise.
      seed: public seed of networks and dreams.
    """

    dataset: str = "mnist"
    data: Path | None = None
    family: str = "by-name"
    epsilons: str = "1"
    rates: str = "1e-3,2e-3,4e-3,8e-3"
    schedules: str = "constant"
    settings: str = "150x1024"
    repeats: int = 1
    seed: int = 0


class LeftOut(Refinement):
    """Keeps its share of the budget, so that noise is the default's, and does nothing."""

    def run(self, model: DP2VAE, records: Records) -> None:
        pass


class Bench:
    """One data set, ε and seed: pre-training once, then private phases from where it ended."""

    def __init__(self, data: Path, family: FamilyName, epsilon: float, seed: int):
        """Args: an .npz of `held_out.split`; family of the networks; target; public seed."""
        self._data = datasets.load_npz(data)
        self._flags = TrainFlags(data=data, family=family, privacy=Privacy(epsilon=epsilon), seed=seed)
        self._pretrained: list[list[np.ndarray]] = []

    def held_out(self, rate: float, schedule: ScheduleName, steps: int, batch_size: int) -> dict[str, float]:
        """Mean negative ELBO of the held-out images and its two parts, in nats an image, after a new private phase."""
        flags = replace(self._flags, learning_rate=rate, schedule=schedule, steps=steps, batch_size=batch_size)
        records, pretraining = self._data.train, make_pretraining(flags, self._data.train)
        model = DP2VAE(
            *make_networks(flags, records, pretraining),
            privacy=flags.privacy,
            pretraining=_once(pretraining, self._pretrained),
            prior=make_prior(flags, pretraining),
            refinement=LeftOut(),
            seed=flags.seed,
        )
        model.compile(make_optimizer(flags))
        model.fit(records, batch_size=batch_size, epochs=flags.rounds, steps_per_epoch=steps // flags.rounds, verbose=0)
        assert self._data.test is not None
        found = model.evaluate(self._data.test, verbose=0, return_dict=True)
        return {name: round(float(found[name]), 3) for name in ("loss", "reconstruction", "kl")}


def _once(dreams: Any, kept: list[list[np.ndarray]]) -> Dreams:
    """Dreams that are learned from once; `kept` holds what came of it, which is put back the next time."""

    class Once(Dreams):
        def run(self, model: DP2VAE, records: Records) -> None:
            made = (model.encoder, model.decoder, model.latent_prior, model.contrast)
            if kept:
                for part, weights in zip(made, kept):
                    part.set_weights(weights)
            else:
                super().run(model, records)
                kept.extend(part.get_weights() for part in made)

    return Once(**vars(dreams))


def stored() -> list[Row]:
    """The rows measured so far."""
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else []


Setting = tuple[str, str, float, str, str, float]


def by_setting(rows: list[Row]) -> dict[Setting, list[Row]]:
    """(data set, family, ε, steps and batch, schedule, rate) → its repeats, in order."""
    found: dict[Setting, list[Row]] = {}
    for row in rows:
        work = f"{row['steps']} × {row['batch_size']:,}"
        key = (row["dataset"], row["family"], row["epsilon"], work, row["schedule"], row["learning_rate"])
        found.setdefault(key, []).append(row)
    return dict(sorted(found.items()))


def table(rows: list[Row]) -> str:
    """One line a setting."""
    lines = [
        "| data | family | ε | steps × batch | schedule | rate | held-out −ELBO, nats | reconstruction | KL | repeats |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (dataset, family, epsilon, work, schedule, rate), repeats in by_setting(rows).items():
        losses = [row["loss"] for row in repeats]
        deviation = f" ± {stdev(losses):.1f}" if len(losses) > 1 else ""
        parts = " | ".join(f"{mean(row[part] for row in repeats):.1f}" for part in ("reconstruction", "kl"))
        lines.append(
            f"| {dataset} | {family} | {epsilon:g} | {work} | {schedule} | {rate:g} | {mean(losses):.1f}{deviation} "
            f"| {parts} | {len(repeats)} |"
        )
    return "\n".join(lines)


def draw(rows: list[Row], file: Path) -> None:
    """−ELBO against the rate: a panel a data set and ε, a line a schedule, steps and batch."""
    panels: dict[tuple[str, float], dict[str, list[tuple[float, float]]]] = {}
    for (dataset, _, epsilon, work, schedule, rate), repeats in by_setting(rows).items():
        lines = panels.setdefault((dataset, epsilon), {})
        lines.setdefault(f"{work}, {schedule}", []).append((rate, mean(row["loss"] for row in repeats)))
    columns = max(sum(dataset == name for dataset, _ in panels) for name, _ in panels)
    names = sorted({dataset for dataset, _ in panels})
    figure, axes = plt.subplots(len(names), columns, figsize=(4 * columns, 3.2 * len(names)), squeeze=False)
    for name, row in zip(names, axes):
        mine = [(epsilon, lines) for (dataset, epsilon), lines in panels.items() if dataset == name]
        for axis, (epsilon, lines) in zip(row, mine):
            for label, points in lines.items():
                axis.plot(*zip(*points), "-o", ms=4, label=label)
            axis.set(
                xscale="log", xlabel="learning rate", ylabel="held-out −ELBO, nats", title=f"{name}, ε = {epsilon:g}"
            )
            rates = sorted({rate for points in lines.values() for rate, _ in points})
            axis.set_xticks(rates, [f"{rate:g}" for rate in rates])
            axis.set_xticks([], minor=True)
            axis.legend(fontsize=7)
            axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)


def main() -> None:
    flags = parse(Flags, __doc__)
    data = split(flags.dataset, flags.data)
    name = data.stem.removesuffix("-training")
    family = family_of(name) if flags.family == "by-name" else flags.family
    for epsilon in map(float, flags.epsilons.split(",")):
        bench = Bench(data, family, epsilon, flags.seed)  # type: ignore[arg-type]
        for setting in flags.settings.split(","):
            steps, batch_size = map(int, setting.split("x"))
            for schedule in flags.schedules.split(","):
                for rate in map(float, flags.rates.split(",")):
                    row = {"dataset": name, "family": family, "epsilon": epsilon, "seed": flags.seed}
                    row |= {"steps": steps, "batch_size": batch_size, "schedule": schedule, "learning_rate": rate}
                    there = sum(row == {key: old[key] for key in row} for old in stored())
                    for _ in range(there, flags.repeats):
                        found = bench.held_out(rate, schedule, steps, batch_size)  # type: ignore[arg-type]
                        RESULTS.write_text(json.dumps([*stored(), row | found], indent=1) + "\n", encoding="utf-8")
                        print(row | found, flush=True)
    if rows := stored():
        draw(rows, RESULTS.with_suffix(".png"))
        print(table(rows))


if __name__ == "__main__":
    main()
