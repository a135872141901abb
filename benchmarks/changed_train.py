"""train.py with changes that no flag of it makes, for `levers.py`.

    python benchmarks/changed_train.py deeper --epsilon 1
    python benchmarks/changed_train.py deeper+adam-bc --epsilon 1

Each change replaces one thing that training is made of: the decoder, the DP optimizer, the likelihood or what happens at
the end of pre-training. The guarantee holds with all of them: none touches what is asked of the records, or how often.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import checkout  # noqa: F401 - before whatever imports TensorFlow
import keras
import tensorflow as tf
from keras import layers, ops

import train
from tf_dp2vae import from_flags, networks, objectives, pretraining
from tf_dp2vae.optimizers import DPAdam


@keras.saving.register_keras_serializable("tf_dp2vae_benchmarks")
class UnbiasedDPAdam(DPAdam):
    """DP-AdamBC: the second moment less the variance that the noise adds to it (Tang, Shpilevskiy, Lécuyer 2023)."""

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        step = ops.cast(self.iterations + 1, variable.dtype)
        index = self._get_variable_index(variable)
        first, second = self._momentums[index], self._velocities[index]
        self.assign_add(first, (gradient - first) * (1 - self.beta_1))
        self.assign_add(second, (ops.square(gradient) - second) * (1 - self.beta_2))
        unbiased = second / (1 - ops.power(ops.cast(self.beta_2, variable.dtype), step))
        assert self.noise_multiplier is not None, "train through DP2VAE.fit, which calibrates it"
        noise = (self.noise_multiplier * self.l2_norm_clip / self.expected_batch_size) ** 2
        # Below a tenth of the noise's variance the difference of two estimates says nothing.
        scale = ops.sqrt(ops.maximum(unbiased - noise, 0.1 * noise))
        mean = first / (1 - ops.power(ops.cast(self.beta_1, variable.dtype), step))
        # Half of Adam's rate: a scale without the noise's variance is smaller, so steps would be longer.
        self.assign_sub(variable, ops.cast(learning_rate, variable.dtype) * mean / (2 * scale))


def adam_bc() -> None:
    """DP-AdamBC in the place of Adam."""
    from_flags.DPAdam = UnbiasedDPAdam  # type: ignore[misc]


@dataclass(frozen=True)
class Body:
    """What more stands at a quarter of the resolution in the decoder, behind its first dense layer.

    Attributes:
      convolutions: 3×3 ones, each followed by the activation.
      residual: what came in is added to what comes out.
    """

    convolutions: int
    residual: bool = False

    def __call__(self, hidden: Any, width: int) -> Any:
        entered = hidden
        for _ in range(self.convolutions):
            hidden = layers.Conv2D(width, 3, padding="same", activation="elu")(hidden)
        return layers.Add()([entered, hidden]) if self.residual else hidden


def decoder_with(body: Body) -> Callable[[], None]:
    """Puts more layers into the default decoder."""

    def build(shape: Any, latent_dim: int, num_classes: int, width: int, seed: int, blocks: int) -> keras.Model:
        keras.utils.set_random_seed(seed)
        standard = networks.build_decoder(shape, latent_dim, num_classes, width, seed, blocks)
        first = next(layer.name for layer in standard.layers if isinstance(layer, layers.Conv2D))

        def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
            """The clone's layer on its inputs; before the first convolution, the body."""
            return layer(body(args[0], width)) if layer.name == first else layer(*args, **kwargs)

        return keras.models.clone_model(standard, call_function=call)

    def change() -> None:
        from_flags.build_decoder = build

    return change


def low_rank(rank: int) -> Callable[[], None]:
    """The decoder's first dense layer stays as dreams made it; a low-rank update beside it is trained (Hu et al. 2021)."""

    def build(*sizes: Any) -> keras.Model:
        standard = networks.build_decoder(*sizes)
        keras.utils.set_random_seed(sizes[4])

        def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
            """The clone's layer on its inputs; the first dense one without its activation, the update added before it."""
            if layer.name != first:
                return layer(*args, **kwargs)
            activation, layer.activation = layer.activation, keras.activations.linear
            update = layers.Dense(rank, use_bias=False)(args[0])
            update = layers.Dense(layer.units, use_bias=False, kernel_initializer="zeros")(update)
            return layers.Activation(activation)(layers.Add()([layer(args[0]), update]))

        first = _first_dense(standard).name
        return keras.models.clone_model(standard, call_function=call)

    def change() -> None:
        from_flags.build_decoder = build
        frozen_first_layer()

    return change


@keras.saving.register_keras_serializable("tf_dp2vae_benchmarks")
class StandardisedConvolution(layers.Conv2D):
    """A convolution by its kernel of mean 0 and variance 1 / fan-in in each filter (Qiao et al. 2019)."""

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        mean, variance = tf.nn.moments(tf.convert_to_tensor(kernel), (0, 1, 2), keepdims=True)
        fan_in = math.prod(kernel.shape[:3])
        return super().convolution_op(inputs, (kernel - mean) * tf.math.rsqrt(variance * fan_in + 1e-8))


def weight_standardised() -> None:
    """All convolutions of the decoder but the last, of logits. No rule is for them: one example is taken after the other."""

    def build(*sizes: Any) -> keras.Model:
        def clone(layer: Any) -> Any:
            return (StandardisedConvolution if layer in standardised else type(layer)).from_config(layer.get_config())

        standard = networks.build_decoder(*sizes)
        standardised = [layer for layer in standard.layers if isinstance(layer, layers.Conv2D)][:-1]
        return keras.models.clone_model(standard, clone_function=clone)

    from_flags.build_decoder = build


def gaussian_likelihood() -> None:
    """A Gaussian in the place of the Bernoulli, its variance the best for each image (σ-VAE, Rybkin et al. 2021)."""

    def negative_elbo(images: Any, logits: Any, mean: Any, log_variance: Any) -> objectives.Elbo:
        kl = bernoulli(images, logits, mean, log_variance).kl
        examples, pixels = images.shape[0] or tf.shape(images)[0], images[0].shape.num_elements()
        shown = tf.reshape(tf.sigmoid(logits), [examples, -1, *images.shape[1:]])
        error = tf.reduce_mean(tf.square(shown - images[:, None]), axis=(2, 3, 4))
        return objectives.Elbo(tf.reduce_mean(0.5 * pixels * tf.math.log(error + 1e-4), axis=1), kl)

    bernoulli = objectives.negative_elbo
    objectives.negative_elbo = negative_elbo


def less_kl(weight: float) -> Callable[[], None]:
    """β-VAE's weight of the KL term, below 1: narrower posteriors, sharper reconstructions (Higgins et al. 2017)."""

    def change() -> None:
        def negative_elbo(*tensors: Any) -> objectives.Elbo:
            reconstruction, kl = exact(*tensors)
            return objectives.Elbo(reconstruction, weight * kl)

        exact = objectives.negative_elbo
        objectives.negative_elbo = negative_elbo

    return change


def frozen_first_layer() -> None:
    """The decoder's first dense layer, most of its weights, is trained on dreams only."""
    pretrain = pretraining.Dreams.run

    def run(self: Any, model: Any, records: Any) -> None:
        pretrain(self, model, records)
        _first_dense(model.decoder).trainable = False

    pretraining.Dreams.run = run  # type: ignore[method-assign]


def _first_dense(decoder: keras.Model) -> layers.Dense:
    """The one that makes a coarse picture of the latents: of those that latents go into, the widest."""
    dense = [layer for layer in decoder.layers if isinstance(layer, layers.Dense)]
    latent_and_label = sum(int(tensor.shape[-1]) for tensor in decoder.inputs)
    return max((each for each in dense if each.weights[0].shape[0] == latent_and_label), key=lambda each: each.units)


CHANGES: dict[str, Callable[[], None]] = {
    "adam-bc": adam_bc,
    "deeper": decoder_with(Body(1)),
    "residual": decoder_with(Body(2, residual=True)),
    "gaussian": gaussian_likelihood,
    "quarter-kl": less_kl(0.25),
    "frozen-first-layer": frozen_first_layer,
    "low-rank": low_rank(4),
    "weight-standardised": weight_standardised,
}


if __name__ == "__main__":
    for name in sys.argv.pop(1).split("+"):
        CHANGES[name]()
    train.main()
