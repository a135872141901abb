"""What can the default's decoder show, whatever it learns from? Without privacy it goes on against a critic.

    python benchmarks/critic.py --dataset fashion_mnist  # or --data FILE.npz

The networks of the recipe for surfaces are trained and matched WITHOUT ANY PRIVACY, as for the last rungs of ceiling.py.
Then the decoder, whose latents stay those of the latent prior, is trained against a critic of samples and records (a
generative adversarial network; Goodfellow et al. 2014), and a CNN learns from samples every few thousand steps, by an
average of the decoder's weights and without a judge. As in levers.py the last 10,000 *training* images are held out, and
accuracy is on them. Rows go to benchmarks/results/critic.json, their picture to benchmarks/results/critic.png. It takes an
hour or two.
"""

from __future__ import annotations

from checkout import ROOT  # before whatever imports TensorFlow or the package

# isort: split
import json
from dataclasses import dataclass
from pathlib import Path

import keras
import matplotlib
import numpy as np
import tensorflow as tf
from ceiling import Flags as Networks
from ceiling import images_of, samples, taught, trained
from held_out import split
from keras import layers

from tf_dp2vae import DP2VAE, datasets
from tf_dp2vae.commands import parse
from tf_dp2vae.evaluation.real import Labelled
from tf_dp2vae.recipes import RECIPES
from tf_dp2vae.refinement import Refinement

matplotlib.use("Agg")

import matplotlib.pyplot as plt

RESULTS = ROOT / "benchmarks" / "results" / "critic.json"
_BATCH, _GROUP = 64, 8
"""Images of each kind in a step; how many of them, one after the other, are of one class."""
_LEARNING_RATE, _MOMENTA = 4e-4, (0.0, 0.99)
_PENALTY, _PENALISED_EVERY = 0.03, 8
"""On the critic's squared gradient at records (R1; Mescheder et al. 2018), in one of so many steps, then as many times."""
_AVERAGED = 0.999
_CHANNELS = 32


@dataclass(frozen=True)
class Flags:
    """Decoder against critic.

    Attributes:
      dataset: real data, as for train.py.
      data: an .npz, instead of --dataset.
      pretrain_epochs: passes over the records before.
      steps: of decoder and critic each.
      every: steps from one accuracy to the next.
      epochs: of the CNN.
      seed: of everything.
    """

    dataset: str = "mnist"
    data: Path | None = None
    pretrain_epochs: int = 12
    steps: int = 24_000
    every: int = 3000
    epochs: int = 5
    seed: int = 0


class Critic(keras.Model):
    """How much an image looks like a record of its label, among others of that label: logits.

    Of the label it hears by a projection (Miyato and Koyama 2018). It sees how far features differ within `_GROUP` images of
    one label (Karras et al. 2018 show that of a batch), so samples that are all alike are found out.
    """

    def __init__(self, num_classes: int):
        super().__init__()
        self._looked = [_strided(_CHANNELS), _strided(2 * _CHANNELS)]
        self._compared = [layers.Conv2D(4 * _CHANNELS, 3, padding="same"), layers.Conv2D(4 * _CHANNELS, 3, 2, "same")]
        self._summed = layers.Dense(4 * _CHANNELS)
        self._by_label = layers.Embedding(num_classes, 4 * _CHANNELS)
        self._logit = layers.Dense(1)

    def call(self, images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """[groups · `_GROUP`, height, width, channels], labels alike within each group → as many logits."""
        hidden = images
        for layer in self._looked:
            hidden = _leaky(layer(hidden))
        groups = tf.reshape(hidden, [-1, _GROUP, *hidden.shape[1:]])
        deviation = tf.sqrt(tf.math.reduce_variance(groups, 1) + 1e-6)
        hidden = tf.concat([hidden, tf.repeat(deviation, _GROUP, 0)], -1)
        for layer in self._compared:
            hidden = _leaky(layer(hidden))
        summed = _leaky(self._summed(tf.reshape(hidden, [tf.shape(hidden)[0], int(np.prod(hidden.shape[1:]))])))
        likeness = tf.reduce_sum(summed * self._by_label(labels), 1) / (4 * _CHANNELS) ** 0.5
        return self._logit(summed)[:, 0] + likeness


def _strided(channels: int) -> layers.Layer:
    return layers.Conv2D(channels, 5, 2, "same")


def _leaky(hidden: tf.Tensor) -> tf.Tensor:
    return tf.nn.leaky_relu(hidden, 0.2)


class Match:
    """A decoder and its critic, turn by turn."""

    def __init__(self, model: DP2VAE, real: Labelled, seed: int):
        """Args: a trained model; the records; public seed."""
        self._model, classes = model, model.num_classes
        images, labels = real
        self._records = tf.constant(images[np.argsort(labels, kind="stable")])
        self._of_class = tf.constant(np.bincount(labels, minlength=classes), tf.int32)
        self._critic = Critic(classes)
        self._random = tf.random.Generator.from_seed(seed)
        self._critic(self._records[:_GROUP], tf.zeros([_GROUP], tf.int32))
        self._decoders = model.decoder.trainable_variables
        self._critics = self._critic.trainable_variables
        self._averages = [tf.Variable(variable) for variable in self._decoders]
        self._optimizers = [_adam(variables) for variables in (self._decoders, self._critics)]
        self._turn = tf.function(self._critics_turn, autograph=False)
        self._reply = tf.function(self._decoders_turn, autograph=False)

    def step(self, index: int) -> None:
        """The critic learns, then the decoder."""
        self._turn(index % _PENALISED_EVERY == 0)
        self._reply()

    def averaged(self) -> list[np.ndarray]:
        """The decoder's trained weights, averaged over steps."""
        return [average.numpy() for average in self._averages]

    def _critics_turn(self, penalised: bool) -> None:
        labels = self._labels()
        real, shown = self._drawn(labels), self._shown(labels)
        with tf.GradientTape() as tape:
            with tf.GradientTape() as inner:
                inner.watch(real)
                of_real = self._critic(real, labels)
            loss = tf.reduce_mean(tf.nn.softplus(-of_real) + tf.nn.softplus(self._critic(shown, labels)))
            if penalised:
                slopes = tf.reduce_sum(tf.square(inner.gradient(of_real, real)), (1, 2, 3))
                loss += 0.5 * _PENALTY * _PENALISED_EVERY * tf.reduce_mean(slopes)
        self._optimizers[1].apply(tape.gradient(loss, self._critics), self._critics)

    def _decoders_turn(self) -> None:
        labels = self._labels()
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.nn.softplus(-self._critic(self._shown(labels), labels)))
        self._optimizers[0].apply(tape.gradient(loss, self._decoders), self._decoders)
        for average, variable in zip(self._averages, self._decoders):
            average.assign(_AVERAGED * average + (1 - _AVERAGED) * variable.value)

    def _labels(self) -> tf.Tensor:
        """Of a batch, [`_BATCH`], group by group."""
        classes = self._random.uniform([_BATCH // _GROUP], maxval=self._model.num_classes, dtype=tf.int32)
        return tf.repeat(classes, _GROUP)

    def _drawn(self, labels: tf.Tensor) -> tf.Tensor:
        """A record of each label."""
        uniform = self._random.uniform(tf.shape(labels))
        which = tf.cast(uniform * tf.cast(tf.gather(self._of_class, labels), tf.float32), tf.int32)
        return tf.gather(self._records, tf.gather(tf.cumsum(self._of_class, exclusive=True), labels) + which)

    def _shown(self, labels: tf.Tensor) -> tf.Tensor:
        """A sample of each label."""
        latent = self._model.latent_prior.sample(labels, self._random.uniform([2], maxval=2**30, dtype=tf.int32))
        logits = self._model.decode(latent, labels)
        return self._model.contrast(tf.ensure_shape(logits, [None, *self._model.image_shape]))


def _adam(variables: list[keras.Variable]) -> keras.optimizers.Optimizer:
    optimizer = keras.optimizers.Adam(_LEARNING_RATE, *_MOMENTA)
    optimizer.build(variables)
    return optimizer


def measure(data: Path, flags: Flags) -> list[dict]:
    """A row for each accuracy, the first before any step."""
    dataset = datasets.load_npz(data)
    assert dataset.test is not None
    real, held_out = images_of(dataset.train), images_of(dataset.test)
    model = trained(dataset.train, Networks(pretrain_epochs=flags.pretrain_epochs, seed=flags.seed))
    Refinement(temperature=RECIPES["surfaces"].temperature).run(model, dataset.train)
    match, rows, bar = Match(model, real, flags.seed), [], keras.utils.Progbar(flags.steps, unit_name="step")
    for step in range(flags.steps + 1):
        if step:
            match.step(step)
            bar.update(step)
        if step % flags.every == 0:
            accuracy = _accuracy(model, match.averaged(), len(real[0]), held_out, flags)
            rows.append({"dataset": data.stem.removesuffix("-training"), "seed": flags.seed, "steps": step})
            rows[-1]["acc_cnn"] = round(accuracy, 4)
            print(table(rows[-1:]), flush=True)
    return rows


def _accuracy(model: DP2VAE, weights: list[np.ndarray], num: int, held_out: Labelled, flags: Flags) -> float:
    """Of a CNN that learned from samples by these weights of the decoder, which has its own back then."""
    variables = model.decoder.trainable_variables
    own = [variable.numpy() for variable in variables]
    for variable, weight in zip(variables, weights):
        variable.assign(weight)
    accuracy = taught(samples(model, num, flags.seed), held_out, flags.epochs, flags.seed)[1]
    for variable, weight in zip(variables, own):
        variable.assign(weight)
    return accuracy


def table(rows: list[dict]) -> str:
    """A line a row."""
    lines = ["| data | seed | steps against a critic | CNN % |", "|---|---|---|---|"]
    lines += [f"| {row['dataset']} | {row['seed']} | {row['steps']:,} | {100 * row['acc_cnn']:.1f} |" for row in rows]
    return "\n".join(lines)


def draw(rows: list[dict], file: Path) -> None:
    """Accuracy against steps, a line for each data set and seed."""
    figure, axes = plt.subplots(figsize=(7.5, 4.5))
    for dataset, seed in dict.fromkeys((row["dataset"], row["seed"]) for row in rows):
        own = [row for row in rows if (row["dataset"], row["seed"]) == (dataset, seed)]
        steps, accuracies = [row["steps"] for row in own], [100 * row["acc_cnn"] for row in own]
        axes.plot(steps, accuracies, marker="o", label=f"{dataset}, seed {seed}")
    axes.set_xlabel("steps against a critic")
    axes.set_ylabel("CNN accuracy on held-out training images, %")
    axes.set_title("The default's decoder; no privacy anywhere")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    plt.close(figure)


def main() -> None:
    flags = parse(Flags, __doc__)
    new = measure(split(flags.dataset, flags.data), flags)
    stored = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else []
    measured = {(row["dataset"], row["seed"]) for row in new}
    rows = [row for row in stored if (row["dataset"], row["seed"]) not in measured] + new
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    draw(rows, RESULTS.with_suffix(".png"))
    print(table(rows))


if __name__ == "__main__":
    main()
