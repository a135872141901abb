"""Finds layers through which one record would reach further than its own clipped gradient, by what they do.

A clip bounds one record's influence only if example i's gradient depends on example i alone, and if that gradient is all
that a record leaves behind. Three kinds of layers break this, and any layer can be one, so each operation of a network is
run forward and backward on random inputs and looked at, small and large ones, and again as it is when private steps begin:

  *mixes examples* (BatchNormalization): with one example moved, another example's output or gradient moves.
  *treats examples by their place* (Dropout, GaussianNoise): with the examples in another order, outputs are not in that
     order. A layer's own random numbers come from no private key and go by place; a record left out hands its numbers, and
     those of all after it, on to others.
  *keeps what it sees* (running statistics): a weight is changed on the way, un-noised.

What only the whole network shows, such as a path through whole numbers, is looked for in the whole. Its graph is read, too:
no operation in it may write to a variable, draw a random number or leave TensorFlow, on whatever branch. Reading proves
that of the graph; that examples are kept apart is a test and no proof.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import tree
from tensorflow.python.framework import op_def_registry

from tf_dp2vae.taps import functional
from tf_dp2vae.validation import check

_EXAMPLES = 4
_LARGE = 100.0
"""What is harmless to examples of ordinary size, as a clip of a whole batch, need not be so to large ones."""
_RANDOM = re.compile("Random|Multinomial|^Stateless(Truncated|Parameterized|Shuffle|Sample)")
_PYTHON = "PyFunc"
"""In the name of each operation that calls Python, those too that promise to keep nothing."""
_HARMLESS = re.compile(
    "^(ReadVariableOp|VarHandleOp|VariableShape|ResourceGather|Placeholder|Assert|TensorArray|If|While|Case|(Stateful)?PartitionedCall)"
)
"""Operations that TensorFlow takes for stateful and that leave no state behind; functions' bodies are read by themselves."""
_CLOSE = 1e-4, 1e-5
"""Of an entry, and of the largest one: rows of another order may be rounded otherwise; another mask is no rounding."""


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
                if offence := _offence_of_whole(network):
                    offenders += mixing_layers(network) or [_named(network, offence)]
    _refuse(offenders)


def refuse_mixing_once_trained(networks: Sequence[keras.Model]) -> None:
    """The same for networks that passed already, with the weights that they have by now; layers are not looked at singly."""
    found = [(network, _offence_of_whole(network)) for network in networks]
    _refuse([_named(network, offence) for network, offence in found if offence])


def _refuse(offenders: list[str]) -> None:
    check(
        not offenders,
        f"clipping bounds nothing where layers mix examples, treat them by their place or keep what they see: "
        f"{', '.join(offenders)}. Use GroupNormalization or LayerNormalization instead, and no Dropout.",
    )


def mixing_layers(network: keras.Model) -> list[str]:
    """The offending layers, each as `name (Type mixes examples)` or with another of the reasons."""
    offenders = _offending_operations(network, _offence_of_layer)
    if not offenders and (offence := _offence_of_whole(network)):
        offenders = _offending_operations(network, _offence_of_graph) or [_named(network, offence)]
    return offenders


def _named(operation: Any, offence: str) -> str:
    return f"{operation.name} ({type(operation).__name__} {offence})"


def _offence_of_whole(network: keras.Model) -> str:
    """What only the whole shows, by small examples, by large ones, or by its graph; empty where it shows nothing."""
    whole = _with_all_between(network)
    traced = tf.function(lambda *inputs: _there_and_back(whole, inputs, {})).get_concrete_function(*_inputs(network))

    def run(args: Any) -> list[tf.Tensor]:
        return traced(*tree.flatten(args))

    with unchanged(network.variables):
        by_size = (_offence(run, _inputs(network, scale), []) for scale in (1.0, _LARGE))
        return next(filter(None, by_size), "") or _written_or_drawn(traced)


def _offending_operations(network: keras.Model, offence_of: Callable[[Any, Any, Any], str]) -> list[str]:
    """Those of the network's operations that do what they must not, on random examples."""
    offenders: list[str] = []

    def probed(operation: Any) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with unchanged(_weights(operation)):
                offence = offence_of(operation, args, kwargs)
            if offence:
                offenders.append(_named(operation, offence))
            with unchanged(_weights(operation)):
                return _run(operation, args, kwargs)

        return call

    functional(network)._run_through_graph(tree.flatten(_inputs(network)), operation_fn=probed)
    return offenders


def _offence_of_layer(operation: Any, args: Any, kwargs: Any) -> str:
    return _offence(lambda given: _there_and_back(operation, given, kwargs), args, _weights(operation))


def _offence_of_graph(operation: Any, args: Any, kwargs: Any) -> str:
    return _written_or_drawn(tf.function(lambda: _there_and_back(operation, args, kwargs)).get_concrete_function())


def _written_or_drawn(traced: Any) -> str:
    """What no operation in the graph of a traced function may do; empty where none does it."""
    graph = traced.graph.as_graph_def()
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    names = sorted({node.op for node in nodes})
    if drawn := [name for name in names if _RANDOM.search(name)]:
        return f"treats examples by their place: {', '.join(drawn)}"
    found = {name: op_def_registry.get(name) for name in names if not _HARMLESS.match(name)}
    kept = [name for name, known in found.items() if known is None or known.is_stateful or _PYTHON in name]
    return f"keeps what it sees: {', '.join(kept)}" if kept else ""


def _inputs(network: keras.Model, scale: float = 1.0) -> tuple[Any]:
    """Random examples, as the one argument of a call; whole numbers, which may name rows of a table, stay small."""
    random = np.random.default_rng(0)
    scales = [scale if "float" in tensor.dtype else 1.0 for tensor in network.inputs]
    shapes = [(_EXAMPLES, *tensor.shape[1:]) for tensor in network.inputs]
    inputs = [tf.constant(factor * random.random(shape), tf.float32) for factor, shape in zip(scales, shapes)]
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


def _offence(run: Callable[[Any], list[tf.Tensor]], args: Any, weights: Sequence[keras.Variable]) -> str:
    """Empty where one example's outputs and gradients, and nothing else, depend on one example."""

    def outputs(arguments: Any) -> list[np.ndarray]:
        with unchanged(weights):
            return [np.array(tf.cast(leaf, tf.float32)) for leaf in run(arguments)]

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
    if _has_examples(args) and not all(_close(np.roll(a, 1, 0), b) for a, b in zip(first, turned)):
        return "treats examples by their place"
    with unchanged(weights) as changed:
        run(args)
    return "keeps what it sees" if changed else ""


def _there_and_back(operation: Any, args: Any, kwargs: Any) -> list[tf.Tensor]:
    """Outputs, and the gradients of half their squares with respect to inputs and to the outputs themselves.

    So each output's gradient is of its own size, and of one network's outputs (`_with_all_between`) each stands on the way
    back from those behind it. An operation that has no gradient has no way back to look at.
    """
    # Copies: a tensor that enters twice has a gradient at each place, moved or not.
    args = tree.map_structure(lambda leaf: tf.identity(leaf) if _is_batch(leaf) else leaf, args)
    entered = [leaf for leaf in tree.flatten(args) if _is_batch(leaf) and leaf.dtype.is_floating]
    with tf.GradientTape() as tape:
        tape.watch(entered)
        outputs = tree.flatten(_run(operation, args, kwargs))
        smooth = [leaf for leaf in outputs if leaf.dtype.is_floating]
        total = (
            tf.add_n([0.5 * tf.reduce_sum(tf.square(tf.cast(leaf, tf.float32))) for leaf in smooth]) if smooth else None
        )
    if total is None:
        return outputs
    try:
        back = tape.gradient(total, [*entered, *smooth], unconnected_gradients=tf.UnconnectedGradients.ZERO)
    except LookupError:
        return outputs
    return [*outputs, *map(tf.convert_to_tensor, back)]


def _close(first: np.ndarray, second: np.ndarray) -> bool:
    finite = np.abs(first[np.isfinite(first)])
    return np.allclose(first, second, _CLOSE[0], _CLOSE[1] * max(1.0, finite.max(initial=0.0)), equal_nan=True)


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
