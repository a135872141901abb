"""Usefulness: a classifier trained on synthetic images, tested on real ones.

The protocol is DPDM's (Dockhorn, Cao, Vahdat and Kreis 2023, section 5): 60,000 samples, a CNN with 32, 64 and 128
channels and dropout 0.5, Adam at 3e-4, the epoch chosen on a *synthetic* validation set. Nothing is chosen on real data.
"""

from __future__ import annotations

from dataclasses import dataclass

import keras
import numpy as np
from keras import layers

_LEARNING_RATE = 3e-4
_BATCH = 128


@dataclass(frozen=True)
class ClassifierResult:
    """What a classifier's training came to.

    Attributes:
      accuracy: on real test images, at the chosen epoch.
      chosen_epoch: counted from 1; the best on synthetic validation images.
      synthetic: accuracy on synthetic validation images after each epoch.
      real: accuracy on real test images after each epoch; for looking at, never for choosing.
    """

    accuracy: float
    chosen_epoch: int
    synthetic: list[float]
    real: list[float]


def build_cnn(image_shape: tuple[int, int, int], num_classes: int, seed: int) -> keras.Model:
    """Three convolutions of 32, 64 and 128 channels, each halved in size, dropout 0.5, softmax logits."""
    keras.utils.set_random_seed(seed)
    image = hidden = keras.Input(image_shape)
    for channels in (32, 64, 128):
        hidden = layers.Conv2D(channels, 3, padding="same", activation="relu")(hidden)
        hidden = layers.MaxPooling2D(2)(hidden)
    hidden = layers.Dropout(0.5)(layers.Flatten()(hidden))
    return keras.Model(image, layers.Dense(num_classes)(hidden))


def train_on_synthetic_test_on_real(
    synthetic: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray],
    real: tuple[np.ndarray, np.ndarray],
    num_classes: int,
    epochs: int,
    seed: int = 0,
    verbose: int | str = "auto",
) -> ClassifierResult:
    """Trains the CNN on synthetic images.

    Args:
      synthetic: images [n, h, w, c] in [0, 1] and labels [n], to train on.
      validation: the same, other samples, to choose the epoch on.
      real: real test images and labels.
      num_classes: size of the label set.
      epochs: the most passes.
      seed: of initial weights and order.
      verbose: as in Keras.
    """
    model = build_cnn(synthetic[0].shape[1:], num_classes, seed)
    model.compile(
        keras.optimizers.Adam(_LEARNING_RATE),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    real_accuracy = _AccuracyOn(*real)
    history = model.fit(
        *synthetic,
        batch_size=_BATCH,
        epochs=epochs,
        validation_data=validation,
        callbacks=[real_accuracy],
        verbose=verbose,
    )
    on_synthetic = [float(value) for value in history.history["val_accuracy"]]
    best = int(np.argmax(on_synthetic))
    return ClassifierResult(real_accuracy.values[best], best + 1, on_synthetic, real_accuracy.values)


class _AccuracyOn(keras.callbacks.Callback):
    """Accuracy on given images after each epoch."""

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        super().__init__()
        self._images, self._labels = images, labels
        self.values: list[float] = []

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        logits = self.model.predict(self._images, batch_size=1000, verbose=0)
        self.values.append(float((logits.argmax(1) == self._labels).mean()))
