"""One rule for each layer type: how its per-example gradients factor.

For a linear layer the gradient of example i's loss with respect to the kernel is a product of two small matrices,

    dL_i/dW = left_iᵀ right_i,   left_i: [positions, m],  right_i: [positions, n],  m·n = size of W,

both of which an ordinary backward pass has in hand: the layer's input and the loss's gradient at the layer's linear
output. So the norm of a per-example gradient, and a weighted sum of them, can be had without a backward pass for each
example ("book-keeping", Bu et al. 2023, "Differentially Private Optimization on Large Model at Small Cost";
"ghost clipping", Li et al. 2022).

A rule says, for one layer type,
  * `linear`: the layer's output before its activation, where the gradient is tapped;
  * `factors`: the two matrices of each weight.

`RULES` is the registry. A layer that is used twice appends the positions of both uses, and K draws of one example are K
times as many positions; no rule needs to know.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf


@dataclass(frozen=True)
class Factors:
    """Per-example gradients of one weight, `left_iᵀ right_i`, kept as factors.

    Attributes:
      left: [examples, positions, m].
      right: [examples, positions, n].
    """

    left: tf.Tensor
    right: tf.Tensor

    def joined(self, other: Factors) -> Factors:
        """The sum of both gradients: the positions of one after the other's."""
        return Factors(tf.concat([self.left, other.left], 1), tf.concat([self.right, other.right], 1))


@dataclass(frozen=True)
class LayerRule:
    """How one layer type takes part in book-keeping.

    Attributes:
      linear: (layer, input) → output before the activation.
      factors: (layer, input, gradient at that output, examples) → one `Factors` a trainable weight, in the order of
        `layer.trainable_variables`.
      supports: whether this very layer (with its strides, padding, …) is covered.
    """

    linear: Callable[[Any, tf.Tensor], tf.Tensor]
    factors: Callable[[Any, tf.Tensor, tf.Tensor, int], list[Factors]]
    supports: Callable[[Any], bool]


def _by_example(tensor: tf.Tensor, examples: int) -> tf.Tensor:
    """[examples·draws, …, channels] → [examples, positions, channels]."""
    return tf.reshape(tensor, [examples, -1, tensor.shape[-1]])


def _bias(output_gradient: tf.Tensor, examples: int) -> Factors:
    summed = tf.reduce_sum(_by_example(output_gradient, examples), axis=1, keepdims=True)
    return Factors(tf.ones_like(summed[..., :1]), summed)


def _dense_linear(layer: Any, inputs: tf.Tensor) -> tf.Tensor:
    outputs = tf.linalg.matmul(inputs, layer.kernel)
    return outputs + layer.bias if layer.use_bias else outputs


def _dense_factors(layer: Any, inputs: tf.Tensor, gradient: tf.Tensor, examples: int) -> list[Factors]:
    kernel = Factors(_by_example(inputs, examples), _by_example(gradient, examples))
    return [kernel, _bias(gradient, examples)] if layer.use_bias else [kernel]


def _padding(layer: Any, size: int, axis: int) -> tuple[int, int]:
    """Zeros before and after `axis` (of `size`) of the *finely* spaced side of a strided convolution."""
    if layer.padding == "valid":
        return 0, 0
    kernel, stride = layer.kernel_size[axis], layer.strides[axis]
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def _patches(layer: Any, images: tf.Tensor, positions: tuple[int, int]) -> tf.Tensor:
    """The window of `images` that each coarse position meets: [n, rows, columns, kernel height·width·channels].

    Slices instead of `tf.image.extract_patches`, which XLA turns into a convolution with an identity kernel.
    """
    (height, width), (down, across) = layer.kernel_size, layer.strides
    rows, columns = positions
    before_after = [(0, 0), _padding(layer, images.shape[1], 0), _padding(layer, images.shape[2], 1), (0, 0)]
    reach = ((rows - 1) * down + height, (columns - 1) * across + width)
    # A VALID convolution may leave a margin unread; a transposed one may have written one that no position explains.
    padded = tf.pad(
        images, [(b, max(a, r - n - b)) for (b, a), r, n in zip(before_after, (0, *reach, 0), images.shape)]
    )
    windows = [
        padded[:, i : i + (rows - 1) * down + 1 : down, j : j + (columns - 1) * across + 1 : across, :]
        for i in range(height)
        for j in range(width)
    ]
    return tf.concat(windows, axis=-1)


def _conv_linear(layer: Any, inputs: tf.Tensor) -> tf.Tensor:
    outputs = tf.nn.conv2d(inputs, layer.kernel, layer.strides, layer.padding.upper())
    return outputs + layer.bias if layer.use_bias else outputs


def _conv_factors(layer: Any, inputs: tf.Tensor, gradient: tf.Tensor, examples: int) -> list[Factors]:
    patches = _patches(layer, inputs, (gradient.shape[1], gradient.shape[2]))
    kernel = Factors(_by_example(patches, examples), _by_example(gradient, examples))
    return [kernel, _bias(gradient, examples)] if layer.use_bias else [kernel]


def _conv_transpose_linear(layer: Any, inputs: tf.Tensor) -> tf.Tensor:
    shape = layer.compute_output_shape(inputs.shape)
    outputs = tf.nn.conv2d_transpose(
        inputs, layer.kernel, [tf.shape(inputs)[0], *shape[1:]], layer.strides, layer.padding.upper()
    )
    return outputs + layer.bias if layer.use_bias else outputs


def _conv_transpose_factors(layer: Any, inputs: tf.Tensor, gradient: tf.Tensor, examples: int) -> list[Factors]:
    # The mirror image of a convolution: windows of the output's gradient meet the pixels of the input.
    patches = _patches(layer, gradient, (inputs.shape[1], inputs.shape[2]))
    kernel = Factors(_by_example(patches, examples), _by_example(inputs, examples))
    return [kernel, _bias(gradient, examples)] if layer.use_bias else [kernel]


def _plain_convolution(layer: Any) -> bool:
    return (
        layer.data_format == "channels_last"
        and layer.padding in ("same", "valid")
        and tuple(layer.dilation_rate) == (1, 1)
        and getattr(layer, "groups", 1) == 1
        and getattr(layer, "output_padding", None) is None
        and not getattr(layer, "lora_enabled", False)
    )


def _plain_dense(layer: Any) -> bool:
    return not layer.lora_enabled and layer.quantization_mode is None


RULES: dict[type, LayerRule] = {
    keras.layers.Dense: LayerRule(_dense_linear, _dense_factors, _plain_dense),
    keras.layers.Conv2D: LayerRule(_conv_linear, _conv_factors, _plain_convolution),
    keras.layers.Conv2DTranspose: LayerRule(_conv_transpose_linear, _conv_transpose_factors, _plain_convolution),
}


def rule_for(layer: keras.Layer) -> LayerRule | None:
    """The rule of this very layer, or None. Subclasses may compute anything, so types must match exactly."""
    rule = RULES.get(type(layer))
    return rule if rule is not None and rule.supports(layer) else None
