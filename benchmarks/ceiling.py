"""What holds a classifier back that learned from samples: the classifier, the decoder, the latent prior, or refinement?

    python benchmarks/ceiling.py                          # MNIST
    python benchmarks/ceiling.py --dataset fashion_mnist  # or --data FILE.npz

The networks of the recipe for surfaces (with --blocks 1, for strokes) are trained on records WITHOUT ANY PRIVACY
(`NotPrivate`), and a classifier learns from what stands on each rung of a ladder: the records; their reconstructions;
samples of the latent prior; samples after the matching; and the same chosen by the judge, which is what the default
releases. As in levers.py the last 10,000 *training* images are held out, and accuracy is on them. Rows go to
benchmarks/results/ceiling.json, their picture to benchmarks/results/ceiling.png.
"""

from __future__ import annotations

from checkout import ROOT  # before whatever imports TensorFlow or the package

# isort: split
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import keras
import matplotlib
import numpy as np
import tensorflow as tf
from held_out import split

from tf_dp2vae import DP2VAE, datasets
from tf_dp2vae.baselines import NotPrivate
from tf_dp2vae.commands import parse
from tf_dp2vae.evaluation.classifiers import VALIDATION_ONE_IN, cnn
from tf_dp2vae.evaluation.real import Labelled
from tf_dp2vae.evaluation.release import Release
from tf_dp2vae.networks import build_decoder, build_encoder
from tf_dp2vae.objectives import draw_latent
from tf_dp2vae.records import FULL_SCALE, Records
from tf_dp2vae.refinement import Refinement

matplotlib.use("Agg")

import matplotlib.pyplot as plt

RESULTS = ROOT / "benchmarks" / "results" / "ceiling.json"
_AT_ONCE = 1000


@dataclass(frozen=True)
class Flags:
    """The ladder.

    Attributes:
      dataset: real data, as for train.py.
      data: an .npz, instead of --dataset.
      latent_dim: dimensions of z.
      width: channels of the decoder at a quarter of the resolution.
      blocks: residual blocks of the decoder.
      pretrain_epochs: passes over the records.
      epochs: of the CNN.
      seed: of everything.
    """

    dataset: str = "mnist"
    data: Path | None = None
    latent_dim: int = 24
    width: int = 32
    blocks: int = 0
    pretrain_epochs: int = 30
    epochs: int = 5
    seed: int = 0


def rungs(records: Records, flags: Flags) -> Iterator[tuple[str, Labelled]]:
    """What is learned from, best first: as many images as there are records, in [0, 1], and labels."""
    real = images_of(records)
    yield "records", real
    model = trained(records, flags)
    yield "reconstructions", (reconstructions(model, *real), real[1])
    yield "samples of the prior", samples(model, len(real[0]), flags.seed)
    refinement = Refinement()
    refinement.run(model, records)
    yield "matched samples", samples(model, len(real[0]), flags.seed)
    yield "matched and judged", samples(model, len(real[0]), flags.seed, refinement.candidates)


def images_of(records: Records) -> Labelled:
    """All of them, in [0, 1]."""
    with records.opened() as (images, labels):
        return images.astype(np.float32) / FULL_SCALE, np.asarray(labels)


def trained(records: Records, flags: Flags) -> DP2VAE:
    """The networks, after passes over the records without any privacy."""
    keras.utils.set_random_seed(flags.seed)
    shape, classes = records.image_shape, records.num_classes
    model = DP2VAE(
        build_encoder(shape, flags.latent_dim, classes, flags.width, flags.seed),
        build_decoder(shape, flags.latent_dim, classes, flags.width, flags.seed + 1, flags.blocks),
        pretraining=NotPrivate(flags.pretrain_epochs),
        refinement=None,
        seed=flags.seed,
    )
    model.compile("dp-adam")
    model.fit(records, verbose=2)
    return model


def reconstructions(model: DP2VAE, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Each image through a draw of its own posterior."""

    @tf.function(reduce_retracing=True)
    def through(images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        mean, log_variance = model.encode(images, labels)
        noise = tf.random.normal([tf.shape(images)[0], 1, model.latent_dim])
        return model.contrast(model.decode(draw_latent(mean, log_variance, noise), labels))

    starts = range(0, len(images), _AT_ONCE)
    return np.concatenate([through(images[at : at + _AT_ONCE], labels[at : at + _AT_ONCE]).numpy() for at in starts])


def samples(model: DP2VAE, num: int, seed: int, candidates: int = 1) -> Labelled:
    """As a release of the model would draw them."""
    return Release({}, model.sampler(candidates), model.num_classes, model.image_shape).samples(num, seed)


def taught(learned_from: Labelled, held_out: Labelled, epochs: int, seed: int) -> tuple[int, float]:
    """How many images a CNN learned from, the rest choosing the epoch, and its accuracy on those held out."""
    images, labels = learned_from
    order = np.random.default_rng(seed).permutation(len(images))
    parts = np.split(order, [len(order) // VALIDATION_ONE_IN])
    validation, train = ((images[part], labels[part]) for part in parts)
    return len(train[0]), cnn(train, validation, held_out, len(np.unique(held_out[1])), epochs, seed).accuracy


def measure(data: Path, flags: Flags) -> Iterator[dict]:
    """A row a rung."""
    dataset = datasets.load_npz(data)
    assert dataset.test is not None
    held_out = images_of(dataset.test)
    for rung, learned_from in rungs(dataset.train, flags):
        images, accuracy = taught(learned_from, held_out, flags.epochs, flags.seed)
        yield {
            "dataset": data.stem.removesuffix("-training"),
            "rung": rung,
            "latent_dim": flags.latent_dim,
            "width": flags.width,
            "blocks": flags.blocks,
            "pretrain_epochs": flags.pretrain_epochs,
            "images": images,
            "classifier_epochs": flags.epochs,
            "acc_cnn": round(accuracy, 4),
        }


def table(rows: list[dict]) -> str:
    """A line a row."""
    lines = ["| data | latent | width | blocks | epochs | learned from | CNN % |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        sizes = f"{row['latent_dim']} | {row['width']} | {row['blocks']} | {row['pretrain_epochs']}"
        lines.append(f"| {row['dataset']} | {sizes} | {row['rung']} | {100 * row['acc_cnn']:.1f} |")
    return "\n".join(lines)


def draw(rows: list[dict], file: Path) -> None:
    """Accuracy of the CNN down the ladder, a line for each data set and size of network."""
    figure, axes = plt.subplots(figsize=(7.5, 4.5))
    keys = ("dataset", "latent_dim", "width", "blocks", "pretrain_epochs")
    for group in dict.fromkeys(tuple(row[key] for key in keys) for row in rows):
        own = [row for row in rows if tuple(row[key] for key in keys) == group]
        label = "{}, {} latents, width {}, blocks {}, {} epochs".format(*group)
        axes.plot([row["rung"] for row in own], [100 * row["acc_cnn"] for row in own], marker="o", label=label)
    axes.set_ylabel("CNN accuracy on held-out training images, %")
    axes.set_title("What a classifier learned from; no privacy anywhere")
    axes.tick_params(axis="x", rotation=15)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    plt.close(figure)


def main() -> None:
    flags = parse(Flags, __doc__)
    for row in measure(split(flags.dataset, flags.data), flags):
        rows = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else []
        same = ("dataset", "rung", "latent_dim", "width", "blocks", "pretrain_epochs")
        rows = [other for other in rows if any(other[key] != row[key] for key in same)] + [row]
        RESULTS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        draw(rows, RESULTS.with_suffix(".png"))
        print(table(rows), flush=True)


if __name__ == "__main__":
    main()
