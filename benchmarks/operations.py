"""Counted operations of a step beside the time that benchmarks/speed.py measured.

    python benchmarks/operations.py

Prints, for each network of benchmarks/results/speed.json: weights, millions of multiply-additions for each example in the
decoder's matrix products (ordinary, and book-keeping's), the bytes that book-keeping moves besides, the two measured
times, and examples a second.
"""

from __future__ import annotations

import checkout  # noqa: F401 - before whatever imports TensorFlow or the package

# isort: split
import json
import math
from pathlib import Path
from typing import NamedTuple

from speed import ORDINARY, OURS
from speed_engines.shapes import CLASSES, Shapes, shapes_of

from tf_dp2vae.factors import prefers_gram

RESULTS = Path(__file__).parent / "results" / "speed.json"


class Layer(NamedTuple):
    """A matrix product [positions, m]ᵀ [positions, n] for each example."""

    positions: int
    m: int
    n: int


def layers_of(shapes: Shapes) -> list[Layer]:
    """The decoder's products; a transposed convolution's m counts the taps and channels that it writes."""
    widths = [shapes.latent + CLASSES, *shapes.dense]
    found = [Layer(1, before, after) for before, after in zip(widths, widths[1:])]
    if shapes.start is None:
        return [*found, Layer(1, widths[-1], shapes.pixels)]
    height, across, channels = shapes.start
    for filters in shapes.filters:
        found.append(Layer(height * across, 16 * filters, channels))
        height, across, channels = 2 * height, 2 * across, filters
    return found


def counted(shapes: Shapes, draws: int) -> tuple[float, float, float]:
    """Multiply-additions an example (ordinary, book-keeping) and bytes that book-keeping moves besides."""
    ordinary = ours = moved = 0.0
    for index, layer in enumerate(layers_of(shapes)):
        positions, m, n = layer.positions * draws, layer.m, layer.n
        product = positions * m * n
        ordinary += product * (3 if index else 2)
        ours += product * (3 if index else 2)
        if positions == 1:
            continue
        if prefers_gram(positions, m, n):
            ours += positions**2 * (2 * min(m, n) + max(m, n))  # float64 counts twice
            moved += 4 * (12 * positions**2 + 3 * positions * min(m, n) + 2 * positions * (max(m, n) + m))
        else:
            moved += 4 * (3 * m * n + 2 * positions * m)
    return ordinary, ours, moved


def weights(shapes: Shapes) -> int:
    """Of the decoder, biases included."""
    layers = layers_of(shapes)
    biases = sum(shapes.dense) + (sum(shapes.filters) if shapes.start else shapes.pixels)
    return sum(layer.m * layer.n for layer in layers) + biases


def main() -> None:
    result = json.loads(RESULTS.read_text(encoding="utf-8"))
    print(
        "| network | K | image | weights | M ops | M ops, ours | kB moved | ordinary ms | ours ms | ratio | examples/s |"
    )
    print("|" + "---|" * 11)
    rows = [row for row in result["rows"] if row["batch"] == 256] + result["growth"]
    for row in (row for row in rows if row["engine"] == OURS):
        shapes = shapes_of(row["network"])
        beside = [r for r in rows if r["network"] == row["network"] and r["draws"] == row["draws"]]
        base = min(r["median_ms"] for r in beside if r["engine"] in ORDINARY)
        ordinary, ours, moved = counted(shapes, row["draws"])
        print(
            f"| {row['network']} | {row['draws']} | {'×'.join(map(str, shapes.image))} | {weights(shapes):,} "
            f"| {ordinary / 1e6:.2f} | {ours / 1e6:.2f} | {moved / 1e3:.0f} | {base:.1f} | {row['median_ms']:.1f} "
            f"| {row['median_ms'] / base:.2f} | {1e3 * math.floor(row['batch']) / row['median_ms']:,.0f} |"
        )


if __name__ == "__main__":
    main()
