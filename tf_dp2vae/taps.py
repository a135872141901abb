"""Runs functional networks and looks in: each trained layer's input, its linear output, and the gradient there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf
from keras.src.models.functional import Functional

from tf_dp2vae.factors import PerExample
from tf_dp2vae.layer_rules import LayerRule, rule_for

_GRAPHS = (Functional, keras.Sequential)
_CALLS = [kind.call for kind in _GRAPHS]


def is_graph(layer: Any) -> bool:
    """Whether a layer is a network that does what its graph says: no composite layer, and none with a call of its own."""
    if not isinstance(layer, _GRAPHS):
        return False
    kind = type(layer)
    return kind.call in _CALLS and kind.__call__ is keras.Layer.__call__ and "call" not in vars(layer)


class _Tap(NamedTuple):
    layer: keras.Layer
    rule: LayerRule
    inputs: tf.Tensor
    output: tf.Tensor


def run_graph(network: keras.Model, inputs: Any, each: Callable[[Any], Callable[..., Any]]) -> Any:
    """The network's output, `each(operation)` in the place of every operation, of those in networks inside it, too."""

    def entered(operation: Any) -> Callable[..., Any]:
        if is_graph(operation):
            return lambda *args, **_: run_graph(operation, args[0] if len(args) == 1 else args, each)
        return each(operation)

    graph = network._functional if isinstance(network, keras.Sequential) else network
    return graph._run_through_graph(graph._standardize_inputs(inputs), operation_fn=entered)


class Taps:
    """Applies networks under a tape, watching the linear output of every layer of some variables."""

    def __init__(self, tape: tf.GradientTape, variables: Sequence[keras.Variable]):
        """Args: an open tape; the variables whose gradients are wanted. Layers of other ones are applied as they are."""
        self._taps: list[_Tap] = []
        self._tape, self._variables = tape, variables
        self._wanted = {id(variable) for variable in variables}

    def apply(self, network: keras.Model, inputs: Any) -> Any:
        """The network's output, as in training."""
        return run_graph(network, inputs, self._tapped)

    def gradients(self, total: tf.Tensor, examples: int) -> dict[int, PerExample]:
        """The per-example gradients of each variable, by its `id`; those that `total` does not depend on are left out.

        Raises:
          ValueError: a variable belongs to no layer that was applied: its gradient would be zero without a word.
        """
        self._check_seen()
        found: dict[int, PerExample] = {}
        at_outputs = self._tape.gradient(total, [tap.output for tap in self._taps])
        for tap, gradient in zip(self._taps, at_outputs):
            if gradient is None:
                continue
            dense = tf.convert_to_tensor(gradient)
            for variable, new in tap.rule.gradients(tap.layer, tap.inputs, dense, examples):
                if id(variable) in self._wanted:
                    known = found.get(id(variable))
                    found[id(variable)] = new if known is None else known.joined(new)
        return found

    def _check_seen(self) -> None:
        seen = {id(variable) for tap in self._taps for variable in tap.layer.trainable_variables}
        unseen = [variable.path for variable in self._variables if id(variable) not in seen]
        if unseen:
            raise ValueError(f"The loss never applied the layers of {', '.join(unseen)} through `apply`.")

    def _is_trained(self, operation: Any) -> bool:
        return isinstance(operation, keras.Layer) and any(id(v) in self._wanted for v in operation.trainable_variables)

    def _tapped(self, operation: Any) -> Callable[..., Any]:
        rule = rule_for(operation) if self._is_trained(operation) else None
        if rule is None:
            if getattr(operation, "_call_has_training_arg", False):
                return lambda *args, **kwargs: operation(*args, **{**kwargs, "training": True})
            return operation

        def call(inputs: tf.Tensor) -> tf.Tensor:
            output = rule.linear(operation, inputs)
            self._tape.watch(output)
            self._taps.append(_Tap(operation, rule, inputs, output))
            activation = getattr(operation, "activation", None)
            return output if activation is None else activation(output)

        return call
