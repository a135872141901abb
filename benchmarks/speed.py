"""What a private step costs: our engines beside tensorflow-privacy's, and the ordinary step.

    python benchmarks/speed.py

Every engine takes the whole step: encoder forward, clipped sum, noise, Adam. Repetitions are interleaved, so that what the
machine does meanwhile falls on all; figures are medians of one run. Rows go to benchmarks/results/speed.json, the picture
to benchmarks/results/speed.png.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median

import keras
import matplotlib
import numpy as np
import tensorflow as tf
from keras import layers
from simple_parsing import ArgumentParser, DashVariant

from tf_dp2vae import DP2VAE, DPAdam, build_encoder
from tf_dp2vae._tfp import make_vectorized_keras_optimizer_class
from tf_dp2vae.gradients import make_engine
from tf_dp2vae.randomness import SystemEntropy
from tf_dp2vae.sampling import PoissonBatch

matplotlib.use("Agg")

import matplotlib.pyplot as plt

RESULTS = Path(__file__).parent / "results"
LATENT, CLASSES, SHAPE = 16, 10, (28, 28, 1)


@dataclass(frozen=True)
class Flags:
    """The speed benchmark.

    Attributes:
      batches: batch sizes to measure, separated by commas.
      repetitions: timed steps of each engine.
      slow_repetitions: the same for engines that take seconds a step.
    """

    batches: str = "256,1024"
    repetitions: int = 15
    slow_repetitions: int = 3


def mnist_conv_decoder() -> keras.Model:
    """Dense 26→3,136, then transposed convolutions 64→32→1: 117,985 weights."""
    latent, label = keras.Input((LATENT,)), keras.Input((CLASSES,))
    hidden = layers.Concatenate()([latent, label])
    hidden = layers.Reshape((7, 7, 64))(layers.Dense(7 * 7 * 64, activation="relu")(hidden))
    hidden = layers.Conv2DTranspose(32, 4, 2, "same", activation="relu")(hidden)
    return keras.Model([latent, label], layers.Conv2DTranspose(1, 4, 2, "same")(hidden))


def make_model(batch_size: int) -> DP2VAE:
    """The benchmark's VAE: decoder trained, encoder fixed."""
    keras.utils.set_random_seed(0)
    model = DP2VAE(build_encoder(SHAPE, LATENT, CLASSES), mnist_conv_decoder())
    model.encoder.trainable = False
    model.compile(DPAdam(l2_norm_clip=1.0, noise_multiplier=1.0, expected_batch_size=float(batch_size)))
    return model


def full_batch(images: np.ndarray, labels: np.ndarray, physical: int) -> PoissonBatch:
    """A logical batch whose chunks are all full, so that each engine does the same work."""
    chunks = len(images) // physical
    return PoissonBatch(
        tf.constant(images.reshape(chunks, physical, *SHAPE)),
        tf.constant(labels.reshape(chunks, physical)),
        tf.ones([chunks, physical], tf.uint8),
        tf.constant(chunks),
        tf.constant(SystemEntropy().key()),
    )


def our_step(batch_size: int, batch: PoissonBatch, xla: bool) -> Callable[[], None]:
    """One private step with the book-keeping engine."""
    model = make_model(batch_size)
    model._engine = make_engine("book-keeping", model.private_networks)
    model.optimizer.build(model.trainable_variables)
    step = tf.function(model._private_step, jit_compile=xla)
    return lambda: step(batch)["loss"].numpy()


def ordinary_step(batch_size: int, images: tf.Tensor, labels: tf.Tensor, xla: bool) -> Callable[[], None]:
    """One step without clipping and noise."""
    model = make_model(batch_size)
    optimizer = keras.optimizers.Adam()
    variables = model.trainable_variables
    optimizer.build(variables)

    def compute() -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = model._mean_elbo(tf.cast(images, tf.float32) / 255, labels)
        optimizer.apply(tape.gradient(loss, variables), variables)
        return loss

    step = tf.function(compute, jit_compile=xla)
    return lambda: step().numpy()


def tfp_vectorized_step(batch_size: int, images: tf.Tensor, labels: tf.Tensor) -> Callable[[], None]:
    """One step of tensorflow-privacy's vectorized Adam as it comes: Jacobian of the loss vector, its own noise."""
    model = make_model(batch_size)
    optimizer = make_vectorized_keras_optimizer_class(keras.optimizers.Adam)(l2_norm_clip=1.0, noise_multiplier=1.0)
    optimizer._name = optimizer.name
    variables = model.trainable_variables
    optimizer.build(variables)
    noise = tf.random.normal([batch_size, 1, LATENT])

    def losses() -> tf.Tensor:
        return model.losses(lambda network, inputs: network(inputs), (tf.cast(images, tf.float32) / 255, labels, noise))

    @tf.function
    def step() -> None:
        pairs = optimizer._compute_gradients(losses, [variable.value for variable in variables])
        optimizer.apply([gradient for gradient, _ in pairs], variables)

    def run() -> None:
        step()
        variables[0].numpy()

    return run


def measure(batch_size: int, flags: Flags) -> list[dict]:
    """Interleaved timings of all engines at one batch size."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (batch_size, *SHAPE), dtype=np.uint8)
    labels = random.integers(0, CLASSES, batch_size, dtype=np.int32)
    batch, x, y = full_batch(images, labels, min(batch_size, 256)), tf.constant(images), tf.constant(labels)
    engines = {
        "non-private": (ordinary_step(batch_size, x, y, xla=True), flags.repetitions),
        "non-private-no-xla": (ordinary_step(batch_size, x, y, xla=False), flags.repetitions),
        "book-keeping": (our_step(batch_size, batch, xla=True), flags.repetitions),
        "book-keeping-no-xla": (our_step(batch_size, batch, xla=False), flags.repetitions),
    }
    if batch_size <= 256:  # its Jacobian at 1,024 needs more memory than a laptop has
        engines["tfp-vectorized"] = (tfp_vectorized_step(batch_size, x, y), flags.slow_repetitions)
    times: dict[str, list[float]] = {name: [] for name in engines}
    for run, _ in engines.values():
        run()
    for repetition in range(flags.repetitions):
        for name, (run, wanted) in engines.items():
            if repetition < wanted:
                start = time.perf_counter()
                run()
                times[name].append(1e3 * (time.perf_counter() - start))
    return [
        {"network": "mnist-conv", "batch": batch_size, "engine": name, "median_ms": round(median(values), 2)}
        for name, values in times.items()
    ]


def table(rows: list[dict]) -> str:
    """Milliseconds, and the ratio to the better of the two ordinary steps."""
    lines = ["| batch | engine | ms a step | ratio to ordinary |", "|---|---|---|---|"]
    for row in rows:
        ordinary = min(
            r["median_ms"] for r in rows if r["batch"] == row["batch"] and r["engine"].startswith("non-private")
        )
        lines.append(
            f"| {row['batch']} | {row['engine']} | {row['median_ms']:.1f} | {row['median_ms'] / ordinary:.2f} |"
        )
    return "\n".join(lines)


def draw(rows: list[dict], file: Path) -> None:
    """Bars on a logarithmic axis."""
    figure, axis = plt.subplots(figsize=(8, 4))
    names = [f"{row['engine']}, batch {row['batch']}" for row in rows]
    axis.barh(names[::-1], [row["median_ms"] for row in rows][::-1])
    axis.set(xscale="log", xlabel="milliseconds a step (median)")
    figure.tight_layout()
    figure.savefig(file, dpi=100, metadata={"Software": None})
    plt.close(figure)


def main() -> None:
    parser = ArgumentParser(description=__doc__, add_option_string_dash_variants=DashVariant.DASH)
    parser.add_arguments(Flags, dest="flags")
    flags = parser.parse_args().flags
    rows = [row for batch in flags.batches.split(",") for row in measure(int(batch), flags)]
    packages = ("tensorflow", "keras", "tensorflow-privacy", "numpy")
    result = {
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()},
        "versions": {package: version(package) for package in packages},
        "rows": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "speed.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    draw(rows, RESULTS / "speed.png")
    print(table(rows))


if __name__ == "__main__":
    main()
