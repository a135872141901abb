"""Clipped per-example gradient sums: what the DP optimizer adds noise to.

Two engines compute the same thing, Σ_i min(1, C/‖g_i‖) g_i over a fixed-shape batch of examples:

  `book-keeping` (default)  one forward and one backward pass, per-example norms from the layers' factors
                            (`layer_rules`). Where a trained layer has no rule, one example after the other takes over
                            for the whole sum (`tf.vectorized_map`, or a loop), with a message.
  `reference`               tensorflow-privacy's own vectorized optimizer, a Jacobian of the loss vector. Slow; it is the
                            independent truth that tests compare with, for layers that have a rule.

Edge cases, the same in both engines:

  | example                        | contribution        |
  |--------------------------------|---------------------|
  | masked out (padding)           | exactly zero        |
  | non-finite gradient or input   | exactly zero        |
  | ‖g_i‖ ≤ C                      | g_i                 |
  | ‖g_i‖ > C                      | C g_i / ‖g_i‖       |
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol, get_args

import keras
import tensorflow as tf

from tf_dp2vae._tfp import make_vectorized_keras_optimizer_class
from tf_dp2vae.factors import null_unless, pieces_of, weighted_rows, weighted_sums
from tf_dp2vae.layer_rules import rule_for
from tf_dp2vae.taps import Taps, is_graph
from tf_dp2vae.validation import check, check_choice

Apply = Callable[[keras.Model, Any], Any]
"""Applies a network to its inputs: `network(inputs)`, or the same with taps at its layers."""

LossFunction = Callable[[Apply, Any], tf.Tensor]
"""(apply, batch) → per-example losses [examples]. Networks are called through `apply`, so that engines can look in."""

EngineName = Literal["book-keeping", "reference"]

_logger = logging.getLogger(__name__)


@contextmanager
def full_float32() -> Iterator[None]:
    """Products of float32 matrices in all their bits: some GPUs would take 10, and a clipped sum could exceed its bound."""
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(before)


class GradientEngine(Protocol):
    """Computes clipped gradient sums."""

    def clipped_sum(
        self, loss: LossFunction, batch: Any, mask: tf.Tensor, variables: Sequence[keras.Variable], l2_norm_clip: float
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        """The sum of clipped per-example gradients over one batch.

        Args:
          loss: the per-example losses, as a function of how networks are applied and of the batch.
          batch: nested tensors with the examples on axis 0; the length of axis 0 is static.
          mask: [examples], 1 for a record, 0 for padding.
          variables: the trained variables; one clip covers them all.
          l2_norm_clip: C, the bound on each example's gradient over all variables (no unit).

        Returns:
          The sum for each variable (float32), and the sum of the unmasked losses, a *private* number.
        """
        ...


def plain_apply(network: keras.Model, inputs: Any) -> Any:
    """Calls the network as Keras would in training."""
    return network(inputs, training=True)


def make_engine(name: EngineName, networks: Sequence[keras.Model]) -> GradientEngine:
    """The engine of that name for models that train any of `networks`.

    Raises:
      InvalidInputError: the name is not known; `reference`, which takes the gradients of a batch at once, where a layer
        without a rule could make them of the whole batch.
    """
    check_choice(get_args(EngineName), engine=name)
    missing = layers_without_rule(networks)
    names = ", ".join(f"{layer.name} ({type(layer).__name__})" for layer in missing)
    if name == "reference":
        check(
            not missing,
            f"engine='reference' differentiates a whole batch at once, which bounds nothing where a layer makes gradients "
            f"of its weights in its own way, as {names} may: choose engine='book-keeping'.",
        )
        return ReferenceEngine()
    if missing:
        _logger.warning(
            "No book-keeping rule for %s: falling back to one example at a time, which is many times slower and gives the "
            "same gradients.",
            names,
        )
        return VectorizedMapEngine()
    return BookKeepingEngine()


def layers_without_rule(networks: Sequence[keras.Model]) -> list[keras.Layer]:
    """Trained layers that book-keeping has no rule for."""
    missing = []
    for network in networks:
        for layer in network.layers if is_graph(network) else [network]:
            if is_graph(layer):
                missing += layers_without_rule([layer])
            elif layer.trainable_variables and rule_for(layer) is None:
                missing.append(layer)
    return missing


class BookKeepingEngine:
    """One forward and one backward pass, norms from the layers' factors, one weighted sum a weight."""

    def clipped_sum(self, loss, batch, mask, variables, l2_norm_clip):
        examples = mask.shape[0]
        # Examples do not mix, so what is not finite stays in its own example, which weight zero silences in the end.
        kept = tf.cast(mask, tf.float32) * tf.cast(_finite_examples(batch), tf.float32)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            taps = Taps(tape, variables)
            losses = loss(taps.apply, batch)
            total = tf.reduce_sum(losses)
        found = taps.gradients(total, examples)
        norms = tf.sqrt(tf.add_n([gradient.squared_norms() for gradient in found.values()]))
        weights = clip_weights(norms, losses, kept, l2_norm_clip)
        flat = dict(zip(found, weighted_sums(list(found.values()), norms, weights)))
        sums = [
            tf.reshape(flat[id(variable)], variable.shape) if id(variable) in flat else tf.zeros(variable.shape)
            for variable in variables
        ]
        return sums, tf.reduce_sum(tf.where(weights > 0, losses, 0.0))


class VectorizedMapEngine:
    """Per-example gradients of one example at a time: for layers without a rule."""

    def clipped_sum(self, loss, batch, mask, variables, l2_norm_clip):
        batch, mask = _without_non_finite(batch, mask)

        def one(example: Any) -> tuple[list[tf.Tensor], tf.Tensor]:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch([variable.value for variable in variables])
                value = loss(plain_apply, tf.nest.map_structure(lambda leaf: leaf[None], example))[0]
            values = [variable.value for variable in variables]
            gradients: Any = tape.gradient(value, values, unconnected_gradients=tf.UnconnectedGradients.ZERO)
            return list(gradients), value

        gradients, losses = _for_each(one, batch, [variable.shape for variable in variables])
        flat = [tf.reshape(gradient, [gradient.shape[0], -1]) for gradient in gradients]
        norms = tf.sqrt(tf.add_n([tf.reduce_sum(tf.square(gradient), axis=1) for gradient in flat]))
        weights = clip_weights(norms, losses, mask, l2_norm_clip)
        silenced = [tf.where(weights[:, None] > 0, gradient, 0.0) for gradient in flat]
        sums = [weighted_rows(weights, gradient) for gradient in silenced]
        shaped = [tf.reshape(total, variable.shape) for total, variable in zip(sums, variables)]
        return shaped, tf.reduce_sum(tf.where(weights > 0, losses, 0.0))


def _for_each(one: Callable[[Any], tuple[list[tf.Tensor], tf.Tensor]], batch: Any, shapes: list[Any]) -> Any:
    """`one` of each example: vectorised, or in a loop where TensorFlow cannot do that, or would crash."""
    # A function, for what a vain attempt leaves in the graph would be run.
    vectorised = tf.function(lambda batch: tf.vectorized_map(one, batch), autograph=False)
    complaints = tf.get_logger()
    level = complaints.level
    complaints.setLevel(logging.CRITICAL)  # hundreds of lines on what is done about here
    try:
        if not _may_crash(vectorised.get_concrete_function(batch).graph):
            return vectorised(batch)
    except TypeError:
        pass
    finally:
        complaints.setLevel(level)
    return tf.map_fn(one, batch, fn_output_signature=([tf.TensorSpec(shape) for shape in shapes], tf.TensorSpec([])))


def _may_crash(graph: tf.Graph) -> bool:
    """Whether it multiplies batches of matrices of unlike sizes: with oneDNN's kernels TensorFlow 2.21 dies of some."""
    products = [op.inputs for op in graph.get_operations() if op.type.startswith("BatchMatMul")]
    shapes = [(left.shape, right.shape) for left, right in products]
    unlike = any(left.rank is None or right.rank is None or left[:-2] != right[:-2] for left, right in shapes)
    return unlike or any(_may_crash(function.graph) for function in graph._functions.values())


_TFPrivacyOptimizer = make_vectorized_keras_optimizer_class(keras.optimizers.SGD)


class ReferenceEngine:
    """tensorflow-privacy's vectorized optimizer, unchanged, without noise: the mean of clipped gradients, times P."""

    def __init__(self) -> None:
        self._optimizer = _TFPrivacyOptimizer(
            l2_norm_clip=0.0, noise_multiplier=0.0, unconnected_gradients_to_zero=True
        )
        self._optimizer._name = self._optimizer.name  # it reads the Keras 2 attribute

    def clipped_sum(self, loss, batch, mask, variables, l2_norm_clip):
        self._optimizer._l2_norm_clip = l2_norm_clip
        values = [variable.value for variable in variables]
        pieces = pieces_of(mask.shape[0])
        sums, totals = tf.map_fn(
            lambda piece: self._sum_of_piece(loss, *piece, values),
            tf.nest.map_structure(lambda leaf: _in_pieces(leaf, pieces), (batch, mask)),
            fn_output_signature=([tf.TensorSpec(value.shape) for value in values], tf.TensorSpec([])),
        )
        return [tf.reduce_sum(total, axis=0) for total in sums], tf.reduce_sum(totals)

    def _sum_of_piece(
        self, loss: LossFunction, batch: Any, mask: tf.Tensor, values: list[tf.Variable]
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        """Of so many examples as are added one after the other."""
        batch, mask = _without_non_finite(batch, mask)
        finite = _finite_gradients(loss, batch, values)
        batch = _with_null_unless(finite, batch)
        kept = tf.cast(finite, tf.float32) * mask
        losses = []

        def masked_losses() -> tf.Tensor:
            losses.append(loss(plain_apply, batch) * kept)
            return losses[0]

        means = self._optimizer._compute_gradients(masked_losses, values)
        sums = [tf.convert_to_tensor(mean) * tf.cast(mask.shape[0], tf.float32) for mean, _ in means]
        return sums, tf.reduce_sum(losses[0])


def _in_pieces(leaf: Any, pieces: int) -> tf.Tensor:
    """[examples, …] → [pieces, examples in each, …], zeros behind the last example."""
    examples = leaf.shape[0]
    size = -(-examples // pieces)
    padded = tf.pad(leaf, [[0, pieces * size - examples], *[[0, 0]] * (leaf.shape.rank - 1)])
    return tf.reshape(padded, [pieces, size, *leaf.shape[1:]])


def _finite_gradients(loss: LossFunction, batch: Any, values: list[tf.Variable]) -> tf.Tensor:
    """[examples], one example at a time: in a Jacobian of the whole batch one NaN would reach every row."""

    def one(example: Any) -> tf.Tensor:
        with tf.GradientTape() as tape:
            losses = loss(plain_apply, tf.nest.map_structure(lambda leaf: leaf[None], example))
        gradients = tape.gradient(losses, values, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return tf.reduce_all(tf.stack([tf.reduce_all(tf.math.is_finite(leaf)) for leaf in [*gradients, losses]]))

    return tf.map_fn(one, batch, fn_output_signature=tf.bool)


def clip_weights(norms: tf.Tensor, losses: tf.Tensor, mask: tf.Tensor, l2_norm_clip: float) -> tf.Tensor:
    """min(1, C/‖g_i‖), [examples]; zero for padding and for whatever is not finite."""
    finite = tf.math.is_finite(norms) & tf.math.is_finite(losses) & (tf.cast(mask, tf.float32) > 0)
    # The floor keeps 0/0 out of a null gradient, whose scale does not matter.
    return tf.where(finite, tf.minimum(1.0, l2_norm_clip / tf.maximum(norms, 1e-30)), 0.0)


def _without_non_finite(batch: Any, mask: tf.Tensor) -> tuple[Any, tf.Tensor]:
    """The batch with null records for non-finite ones, and a float mask that leaves those out."""
    finite = _finite_examples(batch)
    kept = tf.cast(finite, tf.float32) * tf.cast(mask, tf.float32)
    return _with_null_unless(finite, batch), kept


def _finite_examples(batch: Any) -> tf.Tensor:
    """[examples], whether the numbers of the example, and their sum, are finite."""
    sums = [
        tf.reduce_sum(tf.reshape(leaf, [leaf.shape[0], -1]), axis=1)
        for leaf in tf.nest.flatten(batch)
        if leaf.dtype.is_floating
    ]
    return tf.reduce_all(tf.math.is_finite(tf.stack(sums)), axis=0)


def _with_null_unless(keep: tf.Tensor, batch: Any) -> Any:
    """The batch with the null record, all zeros, in place of the examples where `keep` is false."""
    return tf.nest.map_structure(lambda leaf: null_unless(keep, leaf), batch)
