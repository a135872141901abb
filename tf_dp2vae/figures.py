"""Pictures, where people would rather look than read. Drawn off-screen, without time stamps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf

_NO_METADATA = {"Software": None}
_PER_CLASS = 10


def sample_grid(sampler_path: Path, file: Path, num_classes: int, seed: int = 0) -> None:
    """Ten samples of each class, a row a class, drawn by the exported sampler itself; ten rows without classes."""
    sampler = tf.saved_model.load(str(sampler_path))
    if num_classes:
        images = np.stack([np.asarray(sampler.sample(_PER_CLASS, label, seed)) for label in range(num_classes)])
    else:
        drawn = np.asarray(sampler.sample(_PER_CLASS * _PER_CLASS, seed))
        images = drawn.reshape(_PER_CLASS, _PER_CLASS, *drawn.shape[1:])
    image_rows(images, file)


def image_rows(images: np.ndarray, file: Path) -> None:
    """Saves images [rows, columns, height, width, channels] in [0, 1] as one picture, each pixel tripled."""
    height, width = images.shape[2:4]
    padded = np.pad(images, [(0, 0), (0, 0), (1, 1), (1, 1), (0, 0)], constant_values=0.5)
    grid = padded.transpose(0, 2, 1, 3, 4).reshape(len(images) * (height + 2), -1, images.shape[-1])
    grid = np.repeat(np.repeat(grid, 3, axis=0), 3, axis=1)
    picture = np.repeat(grid, 3, axis=2) if grid.shape[2] == 1 else grid
    plt.imsave(file, np.clip(picture, 0, 1), metadata=_NO_METADATA)


def training_curves(history: dict[str, Sequence[float]], file: Path) -> None:
    """Private loss and ε spent, against private steps; no picture where there were none."""
    if not history["loss"]:
        return
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(7, 6), sharex=True)
    steps = np.arange(1, len(history["loss"]) + 1)
    top.plot(steps, history["loss"], color="tab:blue")
    top.set_ylabel("negative ELBO of the batch (nats)\nprivate number")
    bottom.plot(steps, history["epsilon"], color="tab:red")
    bottom.set(xlabel="private step", ylabel="ε spent (upper bound)", ylim=(0, None))
    figure.tight_layout()
    figure.savefig(file, dpi=100, metadata=_NO_METADATA)
    plt.close(figure)


def against_epsilon(points: Sequence[tuple[float, float, str]], quantity: str, file: Path) -> None:
    """A quantity against ε, for several runs: a mark for each, a line through the means of those that are alike.

    Args:
      points: ε, value and name of the line of each run.
      quantity: name of the value.
      file: the picture.
    """
    figure, axis = plt.subplots(figsize=(7, 4))
    for name in sorted({name for _, _, name in points}):
        epsilons, values = np.array([(e, v) for e, v, n in points if n == name]).T
        # Runs that differ in their seeds alone state the same ε, but for the last digits of its calibration.
        places, which = np.unique([float(f"{epsilon:.2g}") for epsilon in epsilons], return_inverse=True)
        (line,) = axis.plot(places, [values[which == place].mean() for place in range(len(places))])
        axis.plot(epsilons, values, "o", color=line.get_color(), label=name)
    axis.set(xlabel="ε", ylabel=quantity, xscale="log")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.15))  # below, where no mark is
    figure.savefig(file, dpi=100, bbox_inches="tight", metadata=_NO_METADATA)
    plt.close(figure)


def accuracy_by_epoch(synthetic: Sequence[float], real: Sequence[float], chosen: int, file: Path) -> None:
    """A classifier's accuracy on held-out synthetic and on real images, and the epoch that the former chose."""
    epochs = np.arange(1, len(real) + 1)
    figure, axis = plt.subplots(figsize=(7, 4))
    axis.plot(epochs, synthetic, marker="o", label="held-out synthetic (chooses the epoch)")
    axis.plot(epochs, real, marker="o", label="real test set (reported)")
    axis.axvline(chosen, color="grey", linestyle="--", linewidth=1, label="chosen epoch")
    axis.set(xlabel="epoch", ylabel="accuracy")
    axis.legend()
    figure.tight_layout()
    figure.savefig(file, dpi=100, metadata=_NO_METADATA)
    plt.close(figure)
