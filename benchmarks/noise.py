"""What the grid under noised answers costs: the same private steps with and without it, in turns.

    python benchmarks/noise.py

Prints milliseconds a step (medians over turns), and what drawing and rounding take by themselves; writes
benchmarks/results/noise.json.
"""

from __future__ import annotations

import checkout  # noqa: F401 - before whatever imports TensorFlow or the package

# isort: split
import json
import time
from pathlib import Path
from statistics import median

import numpy as np
import tensorflow as tf

from tf_dp2vae import mechanisms
from tf_dp2vae.gradients import make_engine
from tf_dp2vae.model import DP2VAE
from tf_dp2vae.networks import build_decoder, build_encoder
from tf_dp2vae.pretraining import NoPretraining
from tf_dp2vae.randomness import SystemEntropy, on_grid, standard_normals
from tf_dp2vae.recipes import RECIPES
from tf_dp2vae.records import Records
from tf_dp2vae.sampling import PoissonSource

RESULTS = Path(__file__).parent / "results" / "noise.json"
SHAPE, LATENT, CLASSES, WIDTH, BATCH, DEVIATION = (28, 28, 1), 24, 10, 32, 256, 2.0
TURNS, STEPS = 12, 5


def private_step(grid: bool):
    """A compiled noised sum of the default decoder's gradients, with the grid or without it."""
    encoder = build_encoder(SHAPE, LATENT, CLASSES, WIDTH)
    decoder = build_decoder(SHAPE, LATENT, CLASSES, WIDTH, blocks=RECIPES["strokes"].blocks)
    model = DP2VAE(encoder, decoder, pretraining=NoPretraining())
    variables = model.decoder.trainable_variables
    engine = make_engine("book-keeping", [model.decoder])

    @tf.function
    def step(batch):
        return model.mechanisms.gradient_sum(engine, model, batch, variables, 1.0, DEVIATION)[0]

    def run(batch) -> float:
        begun = time.perf_counter()
        [answer.numpy() for answer in step(batch)]
        return time.perf_counter() - begun

    kept = mechanisms.on_grid
    mechanisms.on_grid = kept if grid else lambda noised, stddev: noised
    batch, num_weights = a_batch(model, variables)
    try:
        run(batch)  # traces
    finally:
        mechanisms.on_grid = kept
    return run, batch, num_weights


def a_batch(model, variables):
    """Poisson records, their latent draws and their noise."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (BATCH * 4, *SHAPE), dtype=np.uint8)
    records = Records(images, random.integers(0, CLASSES, BATCH * 4).astype(np.int32), CLASSES)
    num_weights = sum(int(np.prod(variable.shape)) for variable in variables)
    source = PoissonSource(records, 0.25, BATCH, SystemEntropy(), num_weights, model.private_draws)
    return next(iter(source.dataset())), num_weights


def timed(function) -> float:
    """Milliseconds, the median of fifty."""
    seconds = []
    for _ in range(50):
        begun = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - begun)
    return 1000 * median(seconds)


def main() -> None:
    (with_grid, batch, num_weights), (without, _, _) = private_step(True), private_step(False)
    turns = [
        (median(with_grid(batch) for _ in range(STEPS)), median(without(batch) for _ in range(STEPS)))
        for _ in range(TURNS)
    ]
    draw = timed(lambda: standard_normals(SystemEntropy().generator(), num_weights))
    noised = tf.constant(standard_normals(SystemEntropy().generator(), num_weights))
    rounding = timed(lambda: on_grid(noised, DEVIATION).numpy())
    row = {
        "weights": num_weights,
        "step_with_grid_ms": round(1000 * median(a for a, _ in turns), 2),
        "step_without_ms": round(1000 * median(b for _, b in turns), 2),
        "relative_cost": round(median(a / b for a, b in turns) - 1, 4),
        "draw_ms": round(draw, 3),
        "rounding_ms": round(rounding, 3),
    }
    print("| " + " | ".join(row) + " |\n|" + "---|" * len(row) + "\n| " + " | ".join(map(str, row.values())) + " |")
    RESULTS.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
