"""Usefulness: classifiers trained on synthetic images, tested on real ones; beside them, trained on real ones.

The protocol is DPDM's (Dockhorn, Cao, Vahdat, Kreis 2023, section 5): 60,000 samples; logistic regression, an MLP with 100
hidden units, and a CNN with 32, 64 and 128 channels and dropout 0.5; Adam at 3e-4; the epoch chosen on *other synthetic*
images. Nothing is chosen on real test data.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass

import keras
import numpy as np
from keras import layers
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier

from tf_dp2vae.evaluation.cache import Cache, digest
from tf_dp2vae.evaluation.real import Labelled, RealImages
from tf_dp2vae.evaluation.report import Part
from tf_dp2vae.records import FULL_SCALE

_LEARNING_RATE = 3e-4
_BATCH = 128
_HIDDEN = 100
_MOST_ITERATIONS = 200
_MLP_EPOCHS = 20
"""The least for an MLP, whose epoch costs a tenth of the CNN's."""
_REFERENCE_SEED = 0
VALIDATION_ONE_IN = 6
"""One image in so many chooses the epoch."""
KINDS = {"acc_lr": "logistic regression", "acc_mlp": "MLP, 100 hidden units", "acc_cnn": "CNN, 32-64-128"}


@dataclass(frozen=True)
class ClassifierResult:
    """What a classifier's training came to.

    Attributes:
      accuracy: on real test images, at the chosen epoch.
      chosen_epoch: counted from 1; the best on validation images. 1 where there are no epochs.
      validation: accuracy on validation images after each epoch.
      real: accuracy on real test images after each epoch; for looking at, never for choosing.
    """

    accuracy: float
    chosen_epoch: int
    validation: list[float]
    real: list[float]


def impossible(real: RealImages) -> str:
    """Why no classifier can be trained and tested; empty where one can."""
    few = f"{len(real.train[0])} records are too few: one in {VALIDATION_ONE_IN} chooses the epoch"
    return real.without_labels or ("" if len(real.train[0]) >= VALIDATION_ONE_IN else few)


def usefulness(
    synthetic: Labelled, validation: Labelled, real: RealImages, epochs: int, seed: int, cache: Cache
) -> tuple[Part, ClassifierResult]:
    """Accuracies on the real test set after training on samples, and after training on as many records.

    Args:
      synthetic: samples to train on.
      validation: other samples, to choose the epoch on.
      real: with a test set.
      epochs: the most passes of the CNN.
      seed: of initial weights and order, on samples.
      cache: keeps what training on real records came to.

    Returns:
      The report's part, and the CNN's course on samples.
    """
    assert real.test is not None
    on_samples = accuracies(synthetic, validation, real.test, real.num_classes, epochs, seed, "samples")
    on_records = cache.values(
        "-".join(["classifiers", digest(*real.train, *real.test, real.num_classes, epochs)]),
        lambda: {name: asdict(result) for name, result in _on_records(real, epochs).items()},
    )
    samples, tested = f"{len(synthetic[0]):,} samples", f"{len(real.test[0]):,} real test images"
    rows = [
        (f"accuracy of {words}", f"{on_samples[name].accuracy:.2%} (on records {on_records[name]['accuracy']:.2%})")
        for name, words in KINDS.items()
    ]
    held_out = f"epoch chosen on {len(validation[0]):,} other samples"
    values = {
        **{name: result.accuracy for name, result in on_samples.items()},
        **{f"{name}_on_records": result["accuracy"] for name, result in on_records.items()},
        "samples": len(synthetic[0]),
        "test_images": len(real.test[0]),
        "classifier_epochs": epochs,
        "courses": {name: asdict(result) for name, result in on_samples.items()},
    }
    part = Part(f"Usefulness: {samples}, {tested}, {held_out}", rows, values)
    return part, on_samples["acc_cnn"]


def accuracies(
    train: Labelled, validation: Labelled, test: Labelled, num_classes: int, epochs: int, seed: int, title: str
) -> dict[str, ClassifierResult]:
    """The three classifiers' results, by the names in `KINDS`."""
    sets = [(_unit(images), labels) for images, labels in (train, validation, test)]
    flat = [(images.reshape(len(images), -1), labels) for images, labels in sets]
    print(f"Training classifiers on {title}: {len(train[0]):,} images", flush=True)
    return {
        "acc_lr": _logistic_regression(*flat, seed),
        "acc_mlp": _mlp(*flat, num_classes, max(epochs, _MLP_EPOCHS), seed),
        "acc_cnn": cnn(*sets, num_classes, epochs, seed),
    }


def build_cnn(image_shape: tuple[int, int, int], num_classes: int, seed: int) -> keras.Model:
    """Three convolutions of 32, 64 and 128 channels, each halved in size, dropout 0.5, logits."""
    keras.utils.set_random_seed(seed)
    image = hidden = keras.Input(image_shape)
    for channels in (32, 64, 128):
        hidden = layers.Conv2D(channels, 3, padding="same", activation="relu")(hidden)
        hidden = layers.MaxPooling2D(2)(hidden)
    hidden = layers.Dropout(0.5)(layers.Flatten()(hidden))
    return keras.Model(image, layers.Dense(num_classes)(hidden))


def _on_records(real: RealImages, epochs: int) -> dict[str, ClassifierResult]:
    """Trained on the records, but for one in six, which choose the epoch; the same reference for every run."""
    assert real.test is not None
    images, labels = real.train
    order = np.random.default_rng(_REFERENCE_SEED).permutation(len(images))
    held, kept = order[: len(images) // VALIDATION_ONE_IN], order[len(images) // VALIDATION_ONE_IN :]
    train, validation = (images[kept], labels[kept]), (images[held], labels[held])
    return accuracies(train, validation, real.test, real.num_classes, epochs, _REFERENCE_SEED, "records")


def _unit(images: np.ndarray) -> np.ndarray:
    return images.astype(np.float32) / FULL_SCALE if images.dtype == np.uint8 else images.astype(np.float32)


def _accuracy(predict: Callable[[np.ndarray], np.ndarray], images: np.ndarray, labels: np.ndarray) -> float:
    return float((predict(images) == labels).mean())


def _chosen(validation: list[float], real: list[float]) -> ClassifierResult:
    best = int(np.argmax(validation))
    return ClassifierResult(real[best], best + 1, validation, real)


def _logistic_regression(train: Labelled, validation: Labelled, test: Labelled, seed: int) -> ClassifierResult:
    if len(np.unique(train[1])) < 2:
        return _constant(train, validation, test)
    model = LogisticRegression(max_iter=_MOST_ITERATIONS, random_state=seed)
    with warnings.catch_warnings():
        # Accuracy stands still long before the weights do.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(*train)
    return _chosen([_accuracy(model.predict, *validation)], [_accuracy(model.predict, *test)])


def _constant(train: Labelled, validation: Labelled, test: Labelled) -> ClassifierResult:
    """Samples of one class alone teach one answer."""
    answer = train[1][0]
    return _chosen([float((validation[1] == answer).mean())], [float((test[1] == answer).mean())])


def _mlp(
    train: Labelled, validation: Labelled, test: Labelled, num_classes: int, epochs: int, seed: int
) -> ClassifierResult:
    model = MLPClassifier(
        (_HIDDEN,), batch_size=min(_BATCH, len(train[0])), learning_rate_init=_LEARNING_RATE, random_state=seed
    )
    found: tuple[list[float], list[float]] = ([], [])
    for _ in range(epochs):
        model.partial_fit(*train, classes=np.arange(num_classes))
        for accuracies_so_far, held in zip(found, (validation, test)):
            accuracies_so_far.append(_accuracy(model.predict, *held))
    return _chosen(*found)


def cnn(
    train: Labelled, validation: Labelled, test: Labelled, num_classes: int, epochs: int, seed: int
) -> ClassifierResult:
    """Trains the CNN on images in [0, 1], [n, height, width, channels], with labels [n]."""
    model = build_cnn(train[0].shape[1:], num_classes, seed)
    model.compile(
        keras.optimizers.Adam(_LEARNING_RATE),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    real = _AccuracyOn(model, test)
    history = model.fit(*train, batch_size=_BATCH, epochs=epochs, validation_data=validation, callbacks=[real])
    return _chosen([float(value) for value in history.history["val_accuracy"]], real.values)


class _AccuracyOn(keras.callbacks.Callback):
    """Accuracy on given images after each epoch."""

    def __init__(self, network: keras.Model, images: Labelled):
        super().__init__()
        self._network, self._images = network, images
        self.values: list[float] = []

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        def predict(images: np.ndarray) -> np.ndarray:
            return self._network.predict(images, batch_size=1000, verbose=0).argmax(1)

        self.values.append(_accuracy(predict, *self._images))
