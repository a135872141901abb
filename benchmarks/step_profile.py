"""Where a private step's time goes: the step put together part by part, beside the ordinary one.

    python benchmarks/step_profile.py --network table-mlp --batch 256

Each row is a program that holds the rows above it and one thing more, whose cost is thus a difference of two rows.
`CPU ms` counts the work of all threads: with what is drawn ahead on another core, without what other processes do. All
programs take turns; figures are medians.
"""

from __future__ import annotations

import checkout  # noqa: F401 - before whatever imports TensorFlow or the package

# isort: split
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import tensorflow as tf
from speed_engines.shapes import records, shapes_of
from speed_engines.with_tensorflow import Step, make_model, ordinary_gradients, ordinary_step, our_source

from tf_dp2vae import DP2VAE, mechanisms
from tf_dp2vae.commands import parse
from tf_dp2vae.randomness import SystemEntropy, standard_normals
from tf_dp2vae.sampling import PoissonBatch, unit_interval

LEAST = 0.02
"""Seconds of steps in a row that one figure is taken from."""


@dataclass(frozen=True)
class Flags:
    """The profile.

    Attributes:
      network: mnist-conv, colour-conv or table-mlp.
      batch: records a step.
      turns: of all programs.
    """

    network: str = "table-mlp"
    batch: int = 256
    turns: int = 40


def called(function: Callable[..., Any], *arguments: Any) -> Step:
    """Compiles; a call waits for the last of what it returns. TensorFlow's own kernels, as on a CPU by default."""
    compiled = tf.function(function, reduce_retracing=True, autograph=False)

    def run() -> None:
        tf.nest.flatten(compiled(*arguments))[-1].numpy()

    run()
    return run


def ordinary_programs(flags: Flags) -> dict[str, Step]:
    """The ordinary step."""
    shapes = shapes_of(flags.network)
    model = make_model(shapes)
    images, labels = map(tf.constant, records(shapes, flags.batch))
    return {
        "ordinary: gradient": called(lambda: ordinary_gradients(model, images, labels)),
        "ordinary: and Adam, the whole step": called(ordinary_step(model, images, labels)),
    }


def private_programs(flags: Flags) -> dict[str, Step]:
    """The private step, part by part; but for the last rows on one batch that is there already."""
    model = make_model(shapes_of(flags.network))
    source = our_source(model, *records(shapes_of(flags.network), flags.batch))
    batches = iter(source.dataset())
    batch, variables = next(batches), model.trainable_variables

    def chunk(batch: PoissonBatch) -> Any:
        draws = tuple(rows[0] for rows in batch.draws)
        examples = model.prepare(unit_interval(batch.images[0]), batch.labels[0], draws)
        return model._engine.clipped_sum(model.losses, examples, batch.mask[0], variables, 1.0)

    def noised(batch: PoissonBatch) -> Any:
        return model.mechanisms.gradient_sum(model._engine, model, batch, variables, 1.0, 1.0)

    rows = {"private: clipped sum of one chunk": called(chunk, batch)}
    kept, mechanisms.on_grid = mechanisms.on_grid, lambda noised, stddev: noised
    try:
        rows["private: and chunk loop, noise added in float64"] = called(noised, batch)
    finally:
        mechanisms.on_grid = kept
    return rows | {
        "private: and rounding to the grid": called(noised, batch),
        "private: and Adam": called(lambda batch: updated(model, batch), batch),
        "private: and metrics, the answer handed out": called(model._private_step, batch),
        "private: and batch and noise drawn, the whole step": called(
            lambda batches: model._private_step(next(batches)), batches
        ),
        "beside it: one batch drawn": source.batch,
        "beside it: of that, the latent draws": lambda: model.private_draws(SystemEntropy().generator(), flags.batch),
        "beside it: of that, the noise": lambda: standard_normals(SystemEntropy().generator(), source.num_weights),
    }


def updated(model: DP2VAE, batch: PoissonBatch) -> tf.Tensor:
    """A private step without its metrics; the loss."""
    losses = []

    def noised_sum(variables: Any, l2_norm_clip: float, noise_multiplier: float) -> list[tf.Tensor]:
        sums, loss = model.mechanisms.gradient_sum(
            model._engine, model, batch, variables, l2_norm_clip, noise_multiplier
        )
        losses.append(loss)
        return sums

    model.update(noised_sum)
    return losses[0]


def timed(programs: dict[str, Step], turns: int) -> dict[str, tuple[float, float]]:
    """Milliseconds by the clock and of all threads' work, a call; medians."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
    for _ in range(turns):
        for name, run in programs.items():
            run()  # what ran before it filled the caches
            begun, worked, calls = time.perf_counter(), time.process_time(), 0
            while not calls or time.perf_counter() - begun < LEAST:
                run()
                calls += 1
            clock, work = time.perf_counter() - begun, time.process_time() - worked
            found[name].append((1e3 * clock / calls, 1e3 * work / calls))
    return {
        name: (median(clock for clock, _ in pairs), median(work for _, work in pairs)) for name, pairs in found.items()
    }


def main() -> None:
    flags = parse(Flags, __doc__)
    programs = ordinary_programs(flags) | private_programs(flags)
    print(f"| {flags.network} at {flags.batch} | ms | CPU ms |\n|---|---|---|")
    for name, (clock, work) in timed(programs, flags.turns).items():
        print(f"| {name} | {clock:.2f} | {work:.2f} |")


if __name__ == "__main__":
    main()
