"""A test set made of training images, for whatever is chosen by looking at accuracy: test images have no say there."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from checkout import ROOT

from tf_dp2vae import datasets

FOLDER = ROOT / "runs" / "levers"
HELD_OUT = 10_000


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
