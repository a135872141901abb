"""Networks of a few weights, a loss over them, and how an engine is run on both."""

import keras
import numpy as np
import tensorflow as tf
from conftest import randomised
from keras import layers

VOCABULARY = 5


def squared_loss(network, draws=1):
    """Per-example losses for a batch (inputs [P·K rows by P], shift [P]); the mean over K draws of one example."""

    def loss(apply, batch):
        inputs, shift = batch
        examples = inputs.shape[0]
        merged = tf.reshape(inputs, [examples * draws, *inputs.shape[2:]])
        outputs = tf.reshape(apply(network, merged), [examples, draws, -1])
        return tf.reduce_mean(tf.reduce_sum(tf.square(outputs - shift[:, None, None]), axis=2), axis=1)

    return loss


def batch_for(network, examples=4, draws=1, seed=0):
    """Random inputs (tokens where the network wants whole numbers) and shifts."""
    random = np.random.default_rng(seed)
    shape = (examples, draws, *network.inputs[0].shape[1:])
    tokens = "int" in network.inputs[0].dtype
    inputs = random.integers(0, VOCABULARY, shape) if tokens else random.normal(size=shape).astype(np.float32)
    return tf.constant(inputs), tf.constant(random.normal(size=examples), tf.float32)


def run(engine, network, batch, mask=None, clip=0.7, draws=1):
    mask = tf.ones([len(batch[1])]) if mask is None else tf.cast(mask, tf.float32)
    return engine.clipped_sum(squared_loss(network, draws), batch, mask, network.trainable_variables, clip)


class CentredOnceTrained(layers.Layer):
    """Takes as much of the batch's mean away as its gain says, which is 0 before training."""

    def build(self, shape):
        self.gain = self.add_weight(shape=(), initializer="zeros")

    def call(self, inputs):
        return inputs - self.gain * tf.reduce_mean(inputs, axis=0, keepdims=True)


def model_of(shape, *stack, dtype=None):
    tensor = inputs = keras.Input(shape, dtype=dtype)
    for layer in stack:
        tensor = layer(tensor)
    return randomised(keras.Model(inputs, tensor))


def mixed_network():
    return model_of(
        (4,),
        layers.Dense(12, activation="elu"),
        layers.Reshape((2, 2, 3)),
        layers.Conv2DTranspose(4, 3, strides=2, padding="same", activation="tanh"),
        layers.GroupNormalization(2),
        layers.Conv2D(2, 2),
        layers.Flatten(),
        layers.LayerNormalization(),
        layers.Dense(3),
    )
