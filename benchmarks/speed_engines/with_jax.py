"""JAX: vmap of clipped gradients over the same networks in flax, one jitted step, and JAX's ordinary step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from speed_engines.shapes import CLASSES, HIDDEN, PROJECTED, Shapes, records


class Encoder(nn.Module):
    """The fixed encoder."""

    latent: int

    @nn.compact
    def __call__(self, images, label):
        hidden = nn.Dense(PROJECTED, use_bias=False)(images.reshape(len(images), -1))
        hidden = jnp.concatenate([hidden, label], 1)
        for _ in range(2):
            hidden = nn.elu(nn.Dense(HIDDEN)(hidden))
        return nn.Dense(self.latent)(hidden), nn.Dense(self.latent)(hidden)


class Decoder(nn.Module):
    """The trained decoder."""

    shapes: Shapes

    @nn.compact
    def __call__(self, hidden):
        for units in self.shapes.dense:
            hidden = nn.relu(nn.Dense(units)(hidden))
        if self.shapes.start is None:
            return nn.Dense(self.shapes.pixels)(hidden).reshape(-1, *self.shapes.image)
        hidden = hidden.reshape(-1, *self.shapes.start)
        for filters in self.shapes.filters[:-1]:
            hidden = nn.relu(nn.ConvTranspose(filters, (4, 4), (2, 2))(hidden))
        return nn.ConvTranspose(self.shapes.filters[-1], (4, 4), (2, 2))(hidden)


def build(engine: str, shapes: Shapes, batch: int, draws: int) -> Callable[[], None]:
    """One whole step of the engine, for one draw of z."""
    assert draws == 1
    encoder, decoder, adam = Encoder(shapes.latent), Decoder(shapes), optax.adam(1e-3)
    arrays = [jnp.asarray(array) for array in records(shapes, batch)]
    fixed = encoder.init(jax.random.key(0), jnp.zeros((1, *shapes.image)), jnp.zeros((1, CLASSES)))
    weights = decoder.init(jax.random.key(1), jnp.zeros((1, shapes.latent + CLASSES)))

    def loss(weights: Any, codes: jax.Array, images: jax.Array) -> jax.Array:
        nats = optax.sigmoid_binary_cross_entropy(decoder.apply(weights, codes), images)
        return nats.sum() / len(images)

    def clipped(weights: Any, code: jax.Array, image: jax.Array) -> tuple[jax.Array, Any]:
        value, gradient = jax.value_and_grad(loss)(weights, code[None], image[None])
        scale = jnp.minimum(1.0, 1.0 / optax.global_norm(gradient))
        return value, jax.tree.map(lambda leaf: leaf * scale, gradient)

    @jax.jit
    def step(weights, state, key, images, labels):
        images, label = images / 255.0, jax.nn.one_hot(labels, CLASSES)
        mean, log_variance = encoder.apply(fixed, images, label)
        draw, noise = jax.random.split(key)
        latent = mean + jnp.exp(0.5 * log_variance.clip(-12, 12)) * jax.random.normal(draw, mean.shape)
        codes = jnp.concatenate([latent, label], 1)
        if engine == "jax-non-private":
            value, gradient = jax.value_and_grad(loss)(weights, codes, images)
        else:
            values, gradients = jax.vmap(clipped, (None, 0, 0))(weights, codes, images)
            leaves, tree = jax.tree.flatten(jax.tree.map(lambda leaf: leaf.sum(0), gradients))
            keys = jax.random.split(noise, len(leaves))
            noised = [leaf + jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys)]
            gradient, value = jax.tree.unflatten(tree, [leaf / batch for leaf in noised]), values.mean()
        updates, state = adam.update(gradient, state)
        return optax.apply_updates(weights, updates), state, value

    memory = [weights, adam.init(weights), jax.random.key(2)]

    def run() -> None:
        memory[2], key = jax.random.split(memory[2])
        memory[0], memory[1], value = step(memory[0], memory[1], key, *arrays)
        float(value)

    return run
