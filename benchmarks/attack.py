"""Attacks on both ways of pre-training, beside what each claims.

    python benchmarks/attack.py                  runs all rows (about half an hour on two cores), prints the table
    python benchmarks/attack.py --only dreams    runs the rows whose name contains the word, keeps the others' scores
    python benchmarks/attack.py --only ''        runs none: the table and the picture from the stored scores

The mechanisms are run with fresh noise for every release. Thresholds, and the choice between two scores, are fixed on
calibration releases that are not counted.
"""

from __future__ import annotations

import checkout  # noqa: F401 - before whatever imports TensorFlow or the package

# isort: split
import functools
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from published_mechanism import (
    CLAIM,
    NUM_RECORDS,
    SAMPLING_RATE,
    SEED,
    STEPS,
    PublishedMechanism,
    worst_case_records,
)

from tf_dp2vae import accounting, planning
from tf_dp2vae.audit.bounds import Verdict, verdict_of
from tf_dp2vae.audit.encoder_matching import EncoderMatching
from tf_dp2vae.audit.transcript import TranscriptAudit
from tf_dp2vae.commands import parse
from tf_dp2vae.pretraining import Dreams
from tf_dp2vae.priors import GaussianPrior
from tf_dp2vae.refinement import Refinement

RESULTS = Path(__file__).parent / "results"
CALIBRATION, EVALUATED = 100, 200
DREAM_RECORDS, SIMULATED_SEEDS = 16, 25


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
      pretrain: `unprotected` or `dreams`.
      epochs: of pre-training on the records, or None.
      learning_rate: of that pre-training's Adam, or None.
      seed_known: whether the attacker knows the pre-training seed, or None.
      unnoised: the mechanism whose noise is left out, or None.
      evaluated: releases counted, a side.
    """

    pretrain: str
    epochs: int | None = None
    learning_rate: float | None = None
    seed_known: bool | None = None
    unnoised: str | None = None
    evaluated: int = EVALUATED

    @property
    def name(self) -> str:
        """Words that tell it from the others."""
        if self.pretrain == "dreams":
            return f"dreams, {self.unnoised} without noise" if self.unnoised else "dreams"
        seed = "known" if self.seed_known else "secret"
        return f"unprotected, {self.epochs} epochs, learning rate {self.learning_rate:g}, seed {seed}"


ROWS = (
    *(Row("unprotected", epochs, 1e-3, True) for epochs in (5, 60, 400, 1500)),
    *(Row("unprotected", epochs, 1e-2, True) for epochs in (1, 5, 20, 60)),
    Row("unprotected", 5, 1e-2, False),
    Row("dreams", evaluated=1000),
    Row("dreams", unnoised=accounting.CLASS_STATISTICS),
    Row("dreams", unnoised=accounting.DREAM_MOMENTS),
    Row("dreams", unnoised=accounting.GRADIENT_SUM),
    Row("dreams", unnoised=accounting.LATENT_MOMENTS),
    Row("dreams", unnoised=accounting.FEATURE_MEANS),
)


def _flat(weights: Iterable[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.ravel(weight) for weight in weights])


Scores = dict[str, np.ndarray]
"""For each score its values [2, releases]: of D′, of D. Calibration first."""


def unprotected_scores(row: Row) -> Scores:
    """Runs the releases of one row of the published mechanism, and scores each."""
    assert row.epochs is not None and row.learning_rate is not None
    mechanism = PublishedMechanism(*worst_case_records(), row.learning_rate)

    def pair(seed: int) -> list[list[np.ndarray]]:
        return [mechanism.pretrained(member, seed, row.epochs) for member in (False, True)]

    def shift(encoders: list[list[np.ndarray]]) -> np.ndarray:
        without, with_record = (_flat(mechanism.expected(member, encoders[member])) for member in (False, True))
        return with_record - without

    score: dict[str, Callable[[list[np.ndarray]], float]] = {}
    encoders = pair(SEED) if row.seed_known else None
    if encoders:
        direction = shift(encoders)
        matching = EncoderMatching(
            mechanism.model, mechanism.images[:500], mechanism.labels[:500], encoders[1], encoders[0]
        )
        score["loss"] = matching.score
    else:
        direction = np.mean([shift(pair(seed)) for seed in range(1000, 1000 + SIMULATED_SEEDS)], axis=0)
    score["projection"] = lambda decoder: float(_flat(decoder) @ direction / np.linalg.norm(direction))
    secret = np.random.default_rng()
    scores: dict[str, list[list[float]]] = {name: [[], []] for name in score}
    for _ in range(CALIBRATION + row.evaluated):
        for member in (False, True):
            if encoders:
                encoder = encoders[member]
            else:
                encoder = mechanism.pretrained(member, int(secret.integers(2**31)), row.epochs)
            decoder = mechanism.release(member, encoder)
            for name, function in score.items():
                scores[name][member].append(function(decoder))
    return {name: np.array(values, np.float32) for name, values in scores.items()}


def dreams_scores(row: Row) -> Scores:
    """The transcript's log likelihood ratios."""
    audit = TranscriptAudit(CLAIM, STEPS, SAMPLING_RATE, DREAM_RECORDS, row.unnoised)
    runs = CALIBRATION + row.evaluated
    return {
        "log ratio": np.array([[audit.log_ratio(member) for _ in range(runs)] for member in (False, True)], np.float32)
    }


def chosen(scores: Scores) -> tuple[str, Verdict]:
    """The score that does best on calibration releases (half to set a threshold, half to try it), and its verdict."""
    half = CALIBRATION // 2

    def promise(name: str) -> float:
        out, inside = scores[name][:, :CALIBRATION]
        return verdict_of(inside, out, half, CLAIM.delta).lower_bound

    name = max(scores, key=promise)
    return name, verdict_of(scores[name][1], scores[name][0], CALIBRATION, CLAIM.delta)


def summary(row: Row, scores: Scores) -> dict[str, object]:
    """What `attack.json` keeps of a row."""
    name, verdict = chosen(scores)
    return {
        "pretrain": row.pretrain,
        "epochs": row.epochs,
        "pretrain_learning_rate": row.learning_rate,
        "seed_known": row.seed_known,
        "noise_left_out": row.unnoised,
        "claimed_epsilon": CLAIM.epsilon,
        "delta": CLAIM.delta,
        "lower_bound": round(verdict.lower_bound, 3),
        "releases_per_side": row.evaluated,
        "calibration_per_side": CALIBRATION,
        "true_positives": verdict.true_positives,
        "false_positives": verdict.false_positives,
        "score": name,
        "num_records": NUM_RECORDS if row.pretrain == "unprotected" else DREAM_RECORDS,
        "private_steps": STEPS,
        "planned_noise_multiplier": round(_noise_multiplier(row.pretrain), 3),
        "sampling_rate": SAMPLING_RATE,
    }


@functools.cache
def _noise_multiplier(pretrain: str) -> float:
    shares = {**Dreams().shares, **GaussianPrior().shares, **Refinement().shares} if pretrain == "dreams" else {}
    return planning.plan(CLAIM, SAMPLING_RATE, STEPS, shares).noise_multiplier


def table(rows: list[dict[str, object]]) -> str:
    """Markdown, fit for the README."""
    lines = [
        "| pre-training | epochs | learning rate | seed | noise left out | TPR | FPR | claimed ε | ε is at least |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        seed = {True: "known", False: "secret", None: ""}[row["seed_known"]]
        n = row["releases_per_side"]
        cells = [row["pretrain"], *(row[key] or "" for key in ("epochs", "pretrain_learning_rate"))]
        cells += [seed, row["noise_left_out"] or ""]
        cells += [f"{row['true_positives']}/{n}", f"{row['false_positives']}/{n}", f"{row['claimed_epsilon']:g}"]
        lines.append("| " + " | ".join(map(str, cells)) + f" | {row['lower_bound']:.2f} |")
    return "\n".join(lines)


def histograms(stored: dict[str, Scores], file: Path) -> None:
    """The chosen score of the evaluated releases, a panel a row."""
    rows = [row for row in ROWS if row.name in stored]
    figure, axes = plt.subplots(-(-len(rows) // 3), 3, figsize=(13, 2.6 * -(-len(rows) // 3)), squeeze=False)
    for axis in axes.flat[len(rows) :]:
        axis.axis("off")
    for axis, row in zip(axes.flat, rows):
        name, verdict = chosen(stored[row.name])
        values = stored[row.name][name][:, CALIBRATION:].astype(float)
        # A likelihood without noise is astronomic: a signed logarithm brings it onto the page.
        scale = np.arcsinh if row.unnoised else np.asarray
        values, threshold = scale(values), scale(verdict.threshold)
        bins = np.histogram_bin_edges(values, 40).tolist()
        axis.hist(values[0], bins, alpha=0.6, label="D′ (record nulled)")
        axis.hist(values[1], bins, alpha=0.6, label="D")
        axis.axvline(threshold, color="black", linewidth=1, linestyle="--")
        axis.set_title(f"{row.name}\nclaimed ε = {CLAIM.epsilon:g}, measured ≥ {verdict.lower_bound:.2f}", fontsize=9)
        axis.locator_params(axis="x", nbins=4)
        axis.set_xlabel(f"arsinh({name})" if row.unnoised else name, fontsize=8)
    axes.flat[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=90, metadata={"Software": None})
    plt.close(figure)


def load(file: Path) -> dict[str, Scores]:
    """Stored scores by row name."""
    stored: dict[str, Scores] = {}
    if file.is_file():
        with np.load(file) as archive:
            for key in archive.files:
                row, score = key.split("|")
                stored.setdefault(row, {})[score] = archive[key]
    return stored


@dataclass(frozen=True)
class Flags:
    """The attack.

    Attributes:
      only: run the rows whose name contains this; '' runs none, and by default all are run.
    """

    only: str | None = None


def main() -> None:
    wanted = parse(Flags, __doc__).only
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / "attack_scores.npz"
    for row in ROWS:
        if wanted is None or (wanted and wanted in row.name):
            scores = unprotected_scores(row) if row.pretrain == "unprotected" else dreams_scores(row)
            stored = {**load(file), row.name: scores}
            np.savez_compressed(
                file, **{f"{name}|{score}": v for name, kept in stored.items() for score, v in kept.items()}
            )
            print(f"{row.name}: {chosen(scores)}", flush=True)
    stored = load(file)
    rows = [summary(row, stored[row.name]) for row in ROWS if row.name in stored]
    (RESULTS / "attack.json").write_text(json.dumps(rows, indent=1) + "\n")
    histograms(stored, RESULTS / "attack.png")
    print(table(rows))


if __name__ == "__main__":
    main()
