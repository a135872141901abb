"""One rule for each layer type: what its per-example gradients are made of.

For a linear layer the gradient of example i's loss with respect to the kernel is a product of two small matrices,

    dL_i/dW = left_iᵀ right_i,   left_i: [positions, m],  right_i: [positions, n],  m·n = size of W,

both of which an ordinary backward pass has in hand: the layer's input and the loss's gradient at the layer's linear
output. So the norm of a per-example gradient, and a weighted sum of them, can be had without a backward pass for each
example ("book-keeping", Bu et al. 2023, "Differentially Private Optimization on Large Model at Small Cost";
"ghost clipping", Li et al. 2022).

A rule says, for one layer type,
  * `linear`: the layer's output before its activation, where the gradient is tapped;
  * `gradients`: the per-example gradients (`factors`) of each weight.

`RULES` is the registry. A layer that is used twice appends the positions of both uses, and K draws of one example are K
times as many positions; no rule needs to know.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf
from keras import layers

from tf_dp2vae.factors import PerExample, Products, Rows, Vectors
from tf_dp2vae.patches import Window, patches

Gradients = list[tuple[Any, PerExample]]
"""(weight, its per-example gradients) for each weight of a layer."""


@dataclass(frozen=True)
class LayerRule:
    """How one layer type takes part in book-keeping.

    Attributes:
      linear: (layer, input) → output before the activation.
      gradients: (layer, input, gradient at that output, examples) → the gradients of each weight.
      supports: whether this very layer (with its padding, data format, …) is covered.
    """

    linear: Callable[[Any, tf.Tensor], tf.Tensor]
    gradients: Callable[[Any, tf.Tensor, tf.Tensor, int], Gradients]
    supports: Callable[[Any], bool]


def _by_example(tensor: tf.Tensor, examples: int) -> tf.Tensor:
    """[examples·draws, …, channels] → [examples, positions, channels]."""
    return tf.reshape(tensor, [examples, -1, tensor.shape[-1]])


def _summed(tensor: tf.Tensor, examples: int) -> Vectors:
    """The sum over an example's positions."""
    if tensor.shape.rank == 2 and tensor.shape[0] == examples:
        return Vectors(tensor)
    return Vectors(tf.reduce_sum(_by_example(tensor, examples), axis=1))


def _with_bias(layer: Any, kernel: Products, gradient: tf.Tensor, examples: int) -> Gradients:
    bias: Gradients = [(layer.bias, _summed(gradient, examples))] if layer.use_bias else []
    return [(layer.kernel, kernel), *bias]


def _plus_bias(layer: Any, outputs: tf.Tensor) -> tf.Tensor:
    return tf.nn.bias_add(outputs, layer.bias.value) if layer.use_bias else outputs


# --- Dense ----------------------------------------------------------------------------------------------------------


def _dense_linear(layer: Any, inputs: tf.Tensor) -> tf.Tensor:
    return _plus_bias(layer, tf.linalg.matmul(tf.cast(inputs, layer.kernel.dtype), layer.kernel))


def _dense_gradients(layer: Any, inputs: tf.Tensor, gradient: tf.Tensor, examples: int) -> Gradients:
    factors = tf.cast(inputs, gradient.dtype), gradient
    kernel = Products(*(tf.reshape(factor, [examples, 1, -1, factor.shape[-1]]) for factor in factors))
    return _with_bias(layer, kernel, gradient, examples)


def _plain_dense(layer: Any) -> bool:
    return not layer.lora_enabled and layer.quantization_mode is None


# --- Convolutions and their transposes ------------------------------------------------------------------------------


def _windows(layer: Any, fine: tf.TensorShape, coarse: tf.TensorShape) -> list[Window]:
    """The layer's windows over its finely spaced side (a transposed convolution's output, else the input)."""
    lengths = zip(fine[1:-1], coarse[1:-1])
    kernels = zip(layer.kernel_size, layer.strides, layer.dilation_rate)
    return [
        Window(*length, *kernel, _zeros_before(layer.padding, *length, *kernel))
        for length, kernel in zip(lengths, kernels)
    ]


def _zeros_before(padding: str, size: int, positions: int, taps: int, stride: int, dilation: int) -> int:
    reach = (taps - 1) * dilation
    if padding == "causal":
        return reach
    return max((positions - 1) * stride + reach + 1 - size, 0) // 2 if padding == "same" else 0


def _conv_linear(layer: Any, inputs: tf.Tensor) -> tf.Tensor:
    if layer.padding == "causal":
        left = (layer.kernel_size[0] - 1) * layer.dilation_rate[0]
        inputs = tf.pad(inputs, [(0, 0), (left, 0), (0, 0)])
    padding = "same" if layer.padding == "same" else "valid"
    outputs = keras.ops.conv(inputs, layer.kernel, layer.strides, padding, layer.data_format, layer.dilation_rate)
    return _plus_bias(layer, outputs)


def _conv_gradients(layer: Any, inputs: tf.Tensor, gradient: tf.Tensor, examples: int) -> Gradients:
    read = patches(inputs, _windows(layer, inputs.shape, gradient.shape))
    left = _grouped(read, layer.groups, examples)
    right = _grouped(tf.expand_dims(_by_example(gradient, examples), 2), layer.groups, examples)
    return _with_bias(layer, Products(left, right), gradient, examples)


def _grouped(windows: tf.Tensor, groups: int, examples: int) -> tf.Tensor:
    """[n, positions, taps, channels] → [examples, groups, positions, taps·(channels / groups)]."""
    taps, channels = (int(size) for size in windows.shape[2:])
    if groups == 1:
        return tf.reshape(windows, [examples, 1, -1, taps * channels])
    split = tf.reshape(windows, [examples, -1, taps, groups, channels // groups])
    return tf.reshape(tf.transpose(split, [0, 3, 1, 2, 4]), [examples, groups, -1, taps * channels // groups])


def _conv_transpose_linear(layer: Any, inputs: tf.Tensor) -> tf.Tensor:
    outputs = keras.ops.conv_transpose(
        inputs,
        layer.kernel,
        layer.strides,
        layer.padding,
        layer.output_padding,
        layer.data_format,
        layer.dilation_rate,
    )
    return _plus_bias(layer, outputs)


def _conv_transpose_gradients(layer: Any, inputs: tf.Tensor, gradient: tf.Tensor, examples: int) -> Gradients:
    # The mirror image of a convolution: windows of the output's gradient meet the pixels of the input.
    met = patches(gradient, _windows(layer, gradient.shape, inputs.shape))
    kernel = Products(_grouped(met, 1, examples), tf.expand_dims(_by_example(inputs, examples), 1))
    return _with_bias(layer, kernel, gradient, examples)


def _plain_convolution(layer: Any) -> bool:
    return layer.data_format == "channels_last" and not getattr(layer, "lora_enabled", False)


# --- Normalisations: y = γ x̂ + β ------------------------------------------------------------------------------------


def _layer_normalised(layer: Any, inputs: tf.Tensor) -> tf.Tensor:
    mean, variance = tf.nn.moments(inputs, list(layer.axis), keepdims=True)
    return (inputs - mean) * tf.math.rsqrt(variance + layer.epsilon)


def _group_normalised(layer: Any, inputs: tf.Tensor) -> tf.Tensor:
    shape = [*inputs.shape[1:-1], layer.groups, inputs.shape[-1] // layer.groups]
    grouped = tf.reshape(inputs, [-1, *shape])
    axes = [axis for axis in range(1, len(shape) + 1) if axis != len(shape) - 1]
    mean, variance = tf.nn.moments(grouped, axes, keepdims=True)
    return tf.reshape((grouped - mean) * tf.math.rsqrt(variance + layer.epsilon), tf.shape(inputs))


def _scale_and_shift(normalised: Callable[[Any, tf.Tensor], tf.Tensor]) -> tuple[Callable, Callable]:
    """`linear` and `gradients` of a layer that scales and shifts what `normalised` returns."""

    def linear(layer: Any, inputs: tf.Tensor) -> tf.Tensor:
        outputs = normalised(layer, inputs)
        outputs = outputs * layer.gamma.value if layer.scale else outputs
        return outputs + layer.beta.value if layer.center else outputs

    def gradients(layer: Any, inputs: tf.Tensor, gradient: tf.Tensor, examples: int) -> Gradients:
        def by_weight(tensor: tf.Tensor, weight: Any) -> Vectors:
            return _summed(tf.reshape(tensor, [tensor.shape[0], -1, math.prod(weight.shape)]), examples)

        found: Gradients = []
        if layer.scale:
            found.append((layer.gamma, by_weight(gradient * normalised(layer, inputs), layer.gamma)))
        if layer.center:
            found.append((layer.beta, by_weight(gradient, layer.beta)))
        return found

    return linear, gradients


def _last_axes(layer: Any) -> bool:
    """Whether γ and β belong to the last axes, as by default."""
    axes = layer.axis if isinstance(layer.axis, list) else [layer.axis]
    return axes == list(range(-len(axes), 0)) and not getattr(layer, "rms_scaling", False)


# --- Embedding ------------------------------------------------------------------------------------------------------


def _embedding_linear(layer: Any, inputs: tf.Tensor) -> tf.Tensor:
    return tf.gather(layer.embeddings.value, _rows_of(layer, inputs))


def _embedding_gradients(layer: Any, inputs: tf.Tensor, gradient: tf.Tensor, examples: int) -> Gradients:
    indices = tf.reshape(_rows_of(layer, inputs), [examples, -1])
    return [(layer.embeddings, Rows(indices, _by_example(gradient, examples), layer.input_dim))]


def _rows_of(layer: Any, inputs: tf.Tensor) -> tf.Tensor:
    """Rows that there are: any other would be one of another example where all examples' tables lie end to end."""
    return tf.clip_by_value(tf.cast(inputs, tf.int32), 0, layer.input_dim - 1)


def _plain_embedding(layer: Any) -> bool:
    return not layer.mask_zero and not layer.lora_enabled and layer.quantization_mode is None


_CONVOLUTION = LayerRule(_conv_linear, _conv_gradients, _plain_convolution)
_TRANSPOSED = LayerRule(_conv_transpose_linear, _conv_transpose_gradients, _plain_convolution)

RULES: dict[type, LayerRule] = {
    layers.Dense: LayerRule(_dense_linear, _dense_gradients, _plain_dense),
    layers.Conv1D: _CONVOLUTION,
    layers.Conv2D: _CONVOLUTION,
    layers.Conv3D: _CONVOLUTION,
    layers.Conv1DTranspose: _TRANSPOSED,
    layers.Conv2DTranspose: _TRANSPOSED,
    layers.Conv3DTranspose: _TRANSPOSED,
    layers.LayerNormalization: LayerRule(*_scale_and_shift(_layer_normalised), _last_axes),
    layers.GroupNormalization: LayerRule(*_scale_and_shift(_group_normalised), _last_axes),
    layers.Embedding: LayerRule(_embedding_linear, _embedding_gradients, _plain_embedding),
}


def rule_for(layer: keras.Layer) -> LayerRule | None:
    """The rule of this very layer, or None. Subclasses may compute anything, so types must match exactly."""
    rule = RULES.get(type(layer))
    return rule if rule is not None and rule.supports(layer) else None
