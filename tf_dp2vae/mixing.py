"""Finds layers through which one record would reach further than its own clipped gradient, by what they do.

A clip bounds one record's influence only if example i's gradient depends on example i alone, and if that gradient is all
that a record leaves behind. Three kinds of layers break this, and any layer can be one, so each operation of a network is
run on random inputs and looked at:

  *mixes examples* (BatchNormalization): with one example moved, another example's output moves.
  *treats examples by their place* (Dropout, GaussianNoise): with the examples in another order, outputs are not in that
     order. A layer's own random numbers come from no private key and go by place; a record left out hands its numbers, and
     those of all after it, on to others.
  *keeps what it sees* (running statistics): a weight that no gradient trains is changed by the forward pass, un-noised.

What only the whole network shows, such as a path through whole numbers, is looked for in the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from tf_dp2vae.taps import functional
from tf_dp2vae.validation import check

_EXAMPLES = 4
_CLOSE = {"rtol": 1e-4, "atol": 1e-5, "equal_nan": True}
"""Rows of another order may be rounded otherwise; another mask or another mean is no rounding."""


def refuse_mixing(networks: Sequence[keras.Model]) -> None:
    """Raises `InvalidInputError` naming every layer of the networks that clipping does not bound, and why.

    Each network is looked at as it is, and again with its trained weights moved at random: a gain that starts at 0 hides
    what its layer does once it is trained.
    """
    offenders = [name for network in networks for name in mixing_layers(network)]
    if not offenders:
        for network in networks:
            with unchanged(network.trainable_variables):
                _move(network.trainable_variables)
                offence = _offence(_with_all_between(network), _inputs(network), {})
                if offence:
                    offenders += mixing_layers(network) or [f"{network.name} ({type(network).__name__} {offence})"]
    check(
        not offenders,
        f"clipping bounds nothing where layers mix examples, treat them by their place or keep what they see: "
        f"{', '.join(offenders)}. Use GroupNormalization or LayerNormalization instead, and no Dropout.",
    )


def mixing_layers(network: keras.Model) -> list[str]:
    """The offending layers, each as `name (Type mixes examples)` or with another of the reasons."""
    offenders: list[str] = []

    def probed(operation: Any) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with unchanged(_weights(operation)):
                offence = _offence(operation, args, kwargs)
            if offence:
                offenders.append(f"{operation.name} ({type(operation).__name__} {offence})")
            with unchanged(_weights(operation)):
                return _run(operation, args, kwargs)

        return call

    functional(network)._run_through_graph(tree.flatten(_inputs(network)), operation_fn=probed)
    if not offenders:
        with unchanged(network.variables):
            offence = _offence(network, _inputs(network), {})
        offenders += [f"{network.name} ({type(network).__name__} {offence})"] if offence else []
    return offenders


def _inputs(network: keras.Model) -> tuple[Any]:
    """Random examples, as the one argument of a call."""
    random = np.random.default_rng(0)
    inputs = [tf.constant(random.random((_EXAMPLES, *tensor.shape[1:])), tf.float32) for tensor in network.inputs]
    return (inputs if len(inputs) > 1 else inputs[0],)


def _with_all_between(network: keras.Model) -> keras.Model:
    """The network with every tensor on the way among its outputs, so that nothing can hide what happens there."""
    graph = functional(network)
    nodes = [node for depth in graph._nodes_by_depth.values() for node in depth]
    return keras.Model(graph.inputs, [tensor for node in nodes for tensor in node.output_tensors])


def _move(variables: Sequence[keras.Variable]) -> None:
    """Adds N(0, 0.1²) to each weight."""
    random = np.random.default_rng(1)
    for variable in variables:
        variable.assign_add((0.1 * random.standard_normal(variable.shape)).astype(variable.dtype))


@contextmanager
def unchanged(variables: Sequence[keras.Variable]) -> Iterator[list[str]]:
    """Puts weights back in the end, come what may. The list that it lends then names those that had changed."""
    before, changed = [np.array(variable) for variable in variables], []
    try:
        yield changed
    finally:
        for variable, value in zip(variables, before):
            if not np.array_equal(variable, value, equal_nan=value.dtype.kind == "f"):
                changed.append(variable.path)
                variable.assign(value)


def _offence(operation: Any, args: Any, kwargs: Any) -> str:
    """Empty where one example's output, and nothing else, depends on one example."""

    def outputs(arguments: Any) -> list[np.ndarray]:
        with unchanged(_weights(operation)):
            return [np.array(tf.cast(leaf, tf.float32)) for leaf in tree.flatten(_run(operation, arguments, kwargs))]

    first = outputs(args)
    if any(leaf.shape[:1] != (_EXAMPLES,) for leaf in first):
        return "mixes examples" if _has_examples(args) else ""
    for example in range(_EXAMPLES):
        others = np.arange(_EXAMPLES) != example
        # Up and down: a minimum over the batch does not see a value rise, nor a maximum one fall.
        for scale, shift in ((1.7, 0.31), (0.6, -0.31)):
            moved = tree.map_structure(lambda leaf, s=scale, t=shift, i=example: _moved(leaf, i, s, t), args)
            if any(not np.array_equal(a[others], b[others], equal_nan=True) for a, b in zip(first, outputs(moved))):
                return "mixes examples"
    turned = outputs(tree.map_structure(lambda leaf: tf.roll(leaf, 1, 0) if _is_batch(leaf) else leaf, args))
    if _has_examples(args) and not all(np.allclose(np.roll(a, 1, 0), b, **_CLOSE) for a, b in zip(first, turned)):
        return "treats examples by their place"
    with unchanged(_weights(operation)) as changed:
        _run(operation, args, kwargs)
    return "keeps what it sees" if changed else ""


def _weights(operation: Any) -> Sequence[keras.Variable]:
    return operation.variables if isinstance(operation, keras.Layer) else []


def _is_batch(leaf: Any) -> bool:
    return tf.is_tensor(leaf) and leaf.shape[:1] == [_EXAMPLES]


def _has_examples(args: Any) -> bool:
    return any(_is_batch(leaf) for leaf in tree.flatten(args))


def _moved(leaf: Any, example: int, scale: float, shift: float) -> Any:
    if not _is_batch(leaf) or not leaf.dtype.is_floating:
        return leaf
    return tf.tensor_scatter_nd_update(leaf, [[example]], [leaf[example] * scale + shift])


def _run(operation: Any, args: Any, kwargs: Any) -> Any:
    training = {"training": True} if getattr(operation, "_call_has_training_arg", False) else {}
    return operation(*args, **{**kwargs, **training})
