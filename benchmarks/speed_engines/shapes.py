"""The networks that every framework builds, as numbers: a fixed encoder and a trained decoder."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

CLASSES, PROJECTED, HIDDEN = 10, 64, 256


@dataclass(frozen=True)
class Shapes:
    """One decoder.

    Attributes:
      image: (height, width, channels) of a record.
      latent: dimensions of z.
      dense: units of the hidden dense layers, all ReLU.
      start: (height, width, channels) that the last of them is reshaped to, where convolutions follow.
      filters: of transposed convolutions 4×4 with stride 2, ReLU between them.
    """

    image: tuple[int, int, int]
    latent: int
    dense: tuple[int, ...]
    start: tuple[int, int, int] | None = None
    filters: tuple[int, ...] = ()

    @property
    def pixels(self) -> int:
        return math.prod(self.image)


NETWORKS = {
    "mnist-conv": Shapes((28, 28, 1), 16, (7 * 7 * 64,), (7, 7, 64), (32, 1)),
    "colour-conv": Shapes((32, 32, 3), 64, (4 * 4 * 256,), (4, 4, 256), (128, 64, 3)),
    "table-mlp": Shapes((1, 64, 1), 16, (256, 256)),
}


def growing(factor: int, what: str) -> Shapes:
    """mnist-conv with `factor` quarters of its filters, or a decoder of half of them to images of side 16·`factor`."""
    if what == "weights":
        return Shapes((28, 28, 1), 16, (7 * 7 * 16 * factor,), (7, 7, 16 * factor), (8 * factor, 1))
    side = 4 * factor
    return Shapes((4 * side, 4 * side, 1), 16, (side * side * 32,), (side, side, 32), (32, 1))


def shapes_of(network: str) -> Shapes:
    """By name; `weights:4` (mnist-conv itself) and `side:2` are members of the families that show growth."""
    what, _, factor = network.partition(":")
    return growing(int(factor), what) if factor else NETWORKS[network]


def records(shapes: Shapes, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Random images, uint8, and labels."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (batch, *shapes.image), dtype=np.uint8)
    return images, random.integers(0, CLASSES, batch, dtype=np.int32)
