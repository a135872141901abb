"""The study's page: tables and figures made from the rows of benchmarks/results/utility.json and published.json alone."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

Row = dict[str, Any]
FIGURES = ("acc_lr", "acc_mlp", "acc_cnn", "fid", "fid_samples")
GUARANTEES = {"unprotected": "decoder, given the encoder", "non-private": "no guarantee"}
AMOUNTS = {"none": 0, "unprotected-1": 1, "unprotected-5": 5, "unprotected-20": 20}
_NO_STEPS = "–"
_ONLY_AMOUNTS = AMOUNTS.keys() - {"none"}
_HEAD = (
    "| method | guarantee | steps × batch | LR % | MLP % | CNN % | FID | FID's images a side | seeds | training, minutes |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)
_INTRODUCTION = """# Usefulness and fidelity

Written by `python benchmarks/utility.py --fid-samples 1000` from `utility.json`, the rows that it measured, and
`published.json`, figures as their authors published them. Classifiers are trained on 60,000 samples and tested on the real
test images, the epoch chosen on other samples. Our FID is against test images, as many as there are samples; peers' is of
60,000 samples against the training images. Smaller sets read higher, so compare FIDs with their sizes in mind. Mean ±
standard deviation over seeds; noise is fresh in each run. Minutes are left out where trainings were suspended.
"""


def write_page(rows: list[Row], published: list[Row], folder: Path) -> str:
    """Writes utility.md and its figures into the folder, and returns the page."""
    parts = [_INTRODUCTION, table(rows, published), amounts_table(rows), sources(published)]
    for figure, words in (("acc_cnn", "CNN accuracy, %"), ("fid", "FID")):
        file = folder / f"utility_{figure.removeprefix('acc_')}.png"
        if against_epsilon(rows, published, figure, words, file):
            parts.append(f"\n![{words} against ε]({file.name})")
    page = "\n".join(parts) + "\n"
    (folder / "utility.md").write_text(page, encoding="utf-8")
    return page


def table(rows: list[Row], published: list[Row]) -> str:
    """Every method's mean and deviation over seeds, beside published figures."""
    parts = []
    for dataset, epsilon in sorted({(r["dataset"], r["epsilon"]) for r in rows if r["epsilon"]}, reverse=True):
        here = [row for row in rows if row["dataset"] == dataset and row["epsilon"] in (epsilon, None)]
        parts += [f"\n**{dataset}, ε = {epsilon:g}**\n", _HEAD]
        shown = [row for row in here if row["method"] not in _ONLY_AMOUNTS]
        for method, work in sorted({(row["method"], _work(row)) for row in shown}):
            group = [row for row in shown if (row["method"], _work(row)) == (method, work)]
            parts.append(_line(group, method, GUARANTEES.get(method, "end to end")))
        # The reference is trained once for all seeds, so equal figures are one training.
        real = [
            dict(once) for once in dict.fromkeys(tuple(r["on_records"].items()) for r in here if r.get("on_records"))
        ]
        if real:
            figures = " | ".join(spread([row[figure] for row in real], 1, 100) for figure in FIGURES[:3])
            parts.append(f"| real training images | none | – | {figures} | – | – | {len(real)} | – |")
        for peer in published:
            if (peer["dataset"], peer["epsilon"]) == (dataset, epsilon):
                figures = " | ".join("–" if peer[f] is None else f"{peer[f]:g}" for f in FIGURES[:4])
                parts.append(f"| {peer['method']}, as published | end to end | – | {figures} | 60,000 | – | – |")
    return "\n".join(parts)


def sources(published: list[Row]) -> str:
    """Who published what, a method once."""
    papers = {peer["method"].partition(",")[0].partition(" (")[0]: peer["source"] for peer in published}
    return "\nPublished methods: " + "; ".join(f"{method}: {paper}" for method, paper in papers.items()) + "."


def amounts_table(rows: list[Row]) -> str:
    """What more pre-training on records without noise does, at equal ε of the decoder given the encoder."""
    if all(row["method"] not in _ONLY_AMOUNTS for row in rows):
        return ""
    given = GUARANTEES["unprotected"]
    lines = [
        "\n**Effect of the amount of pre-training on the records (`unprotected`), ε = 1 given the encoder**\n",
        _HEAD.replace("method", "data, epochs"),
    ]
    for dataset in dict.fromkeys(row["dataset"] for row in rows):
        for method, epochs in AMOUNTS.items():
            group = [r for r in rows if (r["dataset"], r["epsilon"], r["method"]) == (dataset, 1.0, method)]
            if group:
                lines.append(_line(group, f"{dataset}, {epochs}", given if epochs else "end to end"))
    return "\n".join(lines)


def spread(values: list[float | None], digits: int, factor: float = 1) -> str:
    """Mean ± deviation, or a dash."""
    known = [factor * value for value in values if value is not None]
    if not known:
        return "–"
    deviation = f" ± {stdev(known):.{digits}f}" if len(known) > 1 else ""
    return f"{mean(known):.{digits}f}{deviation}"


def _work(row: Row) -> str:
    """The private steps that a row took, and the records in each."""
    settings = row.get("settings") or {}
    return f"{settings['steps']} × {settings['batch_size']:,}" if "steps" in settings else _NO_STEPS


def _line(group: list[Row], name: str, guarantee: str) -> str:
    figures = [spread([row.get(f) for row in group], 1, 100) for f in FIGURES[:3]]
    figures.append(spread([row.get("fid") for row in group], 1))
    sizes = "/".join(sorted({f"{row['fid_samples']:,}" for row in group if row.get("fid_samples")})) or "–"
    minutes = spread([row.get("train_seconds") for row in group], 1, 1 / 60)
    return f"| {name} | {guarantee} | {_work(group[0])} | {' | '.join(figures)} | {sizes} | {len(group)} | {minutes} |"


def against_epsilon(rows: list[Row], published: list[Row], figure: str, words: str, file: Path) -> bool:
    """Draws the figure against ε, a panel a data set: ours as lines, published ones as crosses. False: nothing to draw."""
    known = [row for row in rows if row.get(figure) is not None and row["method"] not in _ONLY_AMOUNTS]
    datasets = sorted({row["dataset"] for row in known}, reverse=True)
    if not datasets:
        return False
    methods = sorted({(row["method"], _work(row)) for row in known})
    picture, axes = plt.subplots(1, len(datasets), figsize=(6 * len(datasets), 6.5), squeeze=False)
    for axis, dataset in zip(axes[0], datasets):
        _panel(axis, [row for row in known if row["dataset"] == dataset], methods, figure)
        peers = [peer for peer in published if peer["dataset"] == dataset and peer[figure] is not None]
        for index, method in enumerate(dict.fromkeys(peer["method"] for peer in peers)):
            points = sorted((peer["epsilon"], peer[figure]) for peer in peers if peer["method"] == method)
            style = {"linestyle": ":", "linewidth": 1, "marker": "xP*vd+"[index % 6], "color": "grey"}
            axis.plot(*zip(*points), label=f"{method}, as published", **style)
        axis.set(title=dataset, xlabel="ε", ylabel=words, xscale="log")
        if figure == "fid":
            axis.set_yscale("log")
        axis.set_xticks(ticks := sorted({row["epsilon"] for row in known if row["epsilon"]}), map("{:g}".format, ticks))
    labelled = {text: handle for axis in axes[0] for handle, text in zip(*axis.get_legend_handles_labels())}
    picture.legend(labelled.values(), labelled.keys(), loc="lower center", ncol=2 * len(datasets), fontsize=7)
    picture.tight_layout(rect=(0, 0.16, 1, 1))
    picture.savefig(file, dpi=110, metadata={"Software": None})
    plt.close(picture)
    return True


def _panel(axis: Axes, rows: list[Row], methods: list[tuple[str, str]], figure: str) -> None:
    """A method, with its private steps, has its colour by its place among all, so that it is the same in each panel."""
    factor = 1 if figure == "fid" else 100
    for index, (method, work) in enumerate(methods):
        found: dict[float, list[float]] = {}
        for row in rows:
            if (row["method"], _work(row)) == (method, work):
                found.setdefault(row["epsilon"] or math.inf, []).append(factor * row[figure])
        if not found:
            continue
        named = method if work == _NO_STEPS else f"{method}, {work}"
        label = f"{named} ({GUARANTEES.get(method, 'end to end')})"
        if math.inf in found:
            axis.axhline(mean(found[math.inf]), linestyle="--", color="black", linewidth=1, label=label)
            continue
        epsilons = sorted(found)
        bars = [stdev(found[epsilon]) if len(found[epsilon]) > 1 else 0.0 for epsilon in epsilons]
        means = [mean(found[epsilon]) for epsilon in epsilons]
        # A little beside each other, or bars at one ε hide one another.
        aside = [epsilon * 1.05 ** (index - 2) for epsilon in epsilons]
        axis.errorbar(aside, means, bars, marker="o", capsize=3, color=f"C{index}", label=label)
