"""Our engine, the ordinary step and tensorflow-privacy's own, each over the same DP2VAE."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from speed_engines.shapes import CLASSES, HIDDEN, PROJECTED, Shapes, records

from tf_dp2vae import DP2VAE, DPAdam
from tf_dp2vae._tfp import make_vectorized_keras_optimizer_class
from tf_dp2vae.chunks import chunk_size
from tf_dp2vae.gradients import make_engine, plain_apply
from tf_dp2vae.networks import Projection
from tf_dp2vae.randomness import SystemEntropy
from tf_dp2vae.records import Records
from tf_dp2vae.sampling import PoissonSource, unit_interval

Step = Callable[[], None]


def build(engine: str, shapes: Shapes, batch: int, draws: int) -> Step:
    """One whole step of the engine: encoder forward, gradients, noise where there is any, Adam."""
    model = make_model(shapes, draws)
    images, labels = records(shapes, batch)
    if engine.startswith("book-keeping"):
        return _our_step(model, images, labels, xla="no-xla" not in engine)
    if engine.startswith("non-private"):
        return _ordinary_step(model, tf.constant(images), tf.constant(labels), xla="no-xla" not in engine)
    return _tensorflow_privacy_step(model, tf.constant(images), tf.constant(labels), loop=engine == "tfp-loop")


def make_encoder(shapes: Shapes) -> keras.Model:
    """A fixed projection and two dense layers, as the library's own."""
    image, label = keras.Input(shapes.image), keras.Input((CLASSES,))
    flat = Projection(PROJECTED, shapes.image)(image)
    hidden = layers.Concatenate()([flat, label])
    for _ in range(2):
        hidden = layers.Dense(HIDDEN, activation="elu")(hidden)
    return keras.Model([image, label], [layers.Dense(shapes.latent)(hidden), layers.Dense(shapes.latent)(hidden)])


def make_decoder(shapes: Shapes) -> keras.Model:
    """Dense layers, then transposed convolutions where the shapes have any."""
    latent, label = keras.Input((shapes.latent,)), keras.Input((CLASSES,))
    hidden = layers.Concatenate()([latent, label])
    for units in shapes.dense:
        hidden = layers.Dense(units, activation="relu")(hidden)
    if shapes.start is None:
        return keras.Model([latent, label], layers.Reshape(shapes.image)(layers.Dense(shapes.pixels)(hidden)))
    hidden = layers.Reshape(shapes.start)(hidden)
    for filters in shapes.filters[:-1]:
        hidden = layers.Conv2DTranspose(filters, 4, 2, "same", activation="relu")(hidden)
    return keras.Model([latent, label], layers.Conv2DTranspose(shapes.filters[-1], 4, 2, "same")(hidden))


def make_model(shapes: Shapes, draws: int = 1) -> DP2VAE:
    """The benchmark's VAE: decoder trained, encoder fixed."""
    keras.utils.set_random_seed(0)
    return DP2VAE(make_encoder(shapes), make_decoder(shapes), draws=draws)


def our_source(model: DP2VAE, images: np.ndarray, labels: np.ndarray) -> PoissonSource:
    """Readies the model for private steps as `fit` does; its batches at q = 1, so that each engine does the same work."""
    size = min(chunk_size(model.private_networks, len(images), 1.0, model.draws), len(images))
    model.compile(DPAdam(l2_norm_clip=1.0, noise_multiplier=1.0, expected_batch_size=float(len(images))))
    model._engine = make_engine("book-keeping", model.private_networks)
    model.optimizer.build(model.trainable_variables)
    num_weights, records = model.decoder.count_params(), Records(images, labels, CLASSES)
    return PoissonSource(records, 1.0, size, SystemEntropy(), num_weights, model.private_draws)


def _our_step(model: DP2VAE, images: np.ndarray, labels: np.ndarray, xla: bool) -> Step:
    """As `fit` takes it: index draw, gather and noise on their thread, the batch fetched inside the program."""
    batches = iter(our_source(model, images, labels).dataset())
    compiled = tf.function(model._private_step, jit_compile=xla, reduce_retracing=True, autograph=False)
    step = tf.function(lambda batches: compiled(next(batches)), reduce_retracing=True, autograph=False)
    return lambda: step(batches)["loss"].numpy()


def ordinary_gradients(model: DP2VAE, images: tf.Tensor, labels: tf.Tensor) -> tuple[Any, tf.Tensor]:
    """The ordinary step's gradients, one a variable, and its loss."""
    with tf.GradientTape() as tape:
        noise = keras.random.normal([images.shape[0], model.draws, model.latent_dim], seed=model._noise)
        loss = tf.reduce_mean(model.losses(plain_apply, (unit_interval(images), labels, noise)))
    return tape.gradient(loss, model.trainable_variables), loss


def ordinary_step(model: DP2VAE, images: tf.Tensor, labels: tf.Tensor) -> Callable[[], tf.Tensor]:
    """The ordinary step, which Adam ends, to be compiled; gives its loss."""
    optimizer, variables = keras.optimizers.Adam(), model.trainable_variables
    optimizer.build(variables)

    def compute() -> tf.Tensor:
        gradients, loss = ordinary_gradients(model, images, labels)
        optimizer.apply(gradients, variables)
        return loss

    return compute


def _ordinary_step(model: DP2VAE, images: tf.Tensor, labels: tf.Tensor, xla: bool) -> Step:
    step = tf.function(ordinary_step(model, images, labels), jit_compile=xla, autograph=False)
    return lambda: step().numpy()


def _tensorflow_privacy_step(model: DP2VAE, images: tf.Tensor, labels: tf.Tensor, loop: bool) -> Step:
    """tensorflow-privacy's vectorized Adam as it comes, or the same with one example after the other."""
    variables = model.trainable_variables
    optimizer = make_vectorized_keras_optimizer_class(keras.optimizers.Adam)(l2_norm_clip=1.0, noise_multiplier=1.0)
    optimizer._name = optimizer.name
    optimizer.build(variables)
    values = [variable.value for variable in variables]

    def gradients_of(images: tf.Tensor, labels: tf.Tensor) -> list[tf.Tensor]:
        noise = tf.random.normal([images.shape[0], 1, model.latent_dim])
        losses = lambda: model.losses(plain_apply, (unit_interval(images), labels, noise))  # noqa: E731
        return [gradient for gradient, _ in optimizer._compute_gradients(losses, values)]

    @tf.function(autograph=False)
    def step() -> None:
        if loop:
            signature = [tf.TensorSpec(variable.shape) for variable in variables]
            each = tf.map_fn(lambda one: gradients_of(one[0][None], one[1][None]), (images, labels), signature)
            optimizer.apply([tf.reduce_mean(gradient, 0) for gradient in each], variables)
        else:
            optimizer.apply(gradients_of(images, labels), variables)

    def run() -> None:
        step()
        variables[0].numpy()

    return run
