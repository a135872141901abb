"""Finds layers through which one record would reach further than its own clipped gradient, by what they do.

A clip bounds one record's influence only if example i's gradient depends on example i alone, and if that gradient is all
that a record leaves behind. Three kinds of layers break this, and any layer can be one. So each operation of a network, and
of networks inside it, is run forward and backward on random inputs and looked at, and again as it is when private steps
begin:

  *mixes examples* (BatchNormalization): with one example moved, another example's output or gradient moves.
  *treats examples by their place* (Dropout, GaussianNoise): with the examples in another order, outputs are not in that
     order. A layer's own random numbers come from no private key and go by place; a record left out hands its numbers, and
     those of all after it, on to others.
  *keeps what it sees* (running statistics): a weight is changed on the way, un-noised.

What only the whole network shows, such as a path through whole numbers, is looked for in the whole, by small inputs and
large ones. Its graph is read, too: no operation in it, there or back, may write to a variable, draw a random number or leave
TensorFlow, on whatever branch. Reading proves that of the graph; that examples are kept apart is a test and no proof. What
cannot be run in this way, such as an operation that has no gradient, is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import tree
from tensorflow.python.framework import op_def_registry

from tf_dp2vae.taps import run_graph
from tf_dp2vae.validation import check

_EXAMPLES = 5
"""Few layers have an axis of this length of their own, which would be taken for the batch."""
_LARGE = 100.0
"""What is harmless to examples of ordinary size, as a clip of a whole batch, need not be so to large ones."""
_RANDOM = re.compile("Random|Multinomial|^Stateless(Truncated|Parameterized|Shuffle|Sample)")
_PYTHON = "PyFunc"
"""In the name of each operation that calls Python, those too that promise to keep nothing."""
_HARMLESS = re.compile(
    "^(ReadVariableOp|VarHandleOp|VariableShape|ResourceGather|Placeholder|Assert|CheckNumerics|TensorArray|If|While|Case|"
    "(Stateful)?PartitionedCall)"
)
"""Operations that TensorFlow takes for stateful and that leave no state behind; functions' bodies are read by themselves."""
_DECORATION = re.compile(r"\x1b\[\d*m|\{\{.*?\}\}")
"""Of error messages: what makes letters bold, and names of nodes in graphs."""
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


def _failed(error: Exception) -> str:
    """With what the error says last, apart from where it happened and to what."""
    lines = [_DECORATION.sub("", line).strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith(("[[", "•", "Arguments received"))]
    return f"cannot be looked at, for it fails on random examples: {said[-1] if said else type(error).__name__}"


def _named(operation: Any, offence: str) -> str:
    return f"{operation.name} ({type(operation).__name__} {offence})"


def _offence_of_whole(network: keras.Model) -> str:
    """What only the whole shows, by small examples, by large ones, or by its graph; empty where it shows nothing."""

    def there_and_back(inputs: Any) -> list[tf.Tensor]:
        return _there_and_back(lambda given: _all_between(network, given), (inputs,), {})

    def run(args: Any, kwargs: Any) -> list[tf.Tensor]:
        return traced(*tree.flatten(args))

    with unchanged(network.variables):
        try:
            traced = tf.function(there_and_back, autograph=False).get_concrete_function(_inputs(network))
            by_size = (_offence(run, (_inputs(network, scale),), {}, []) for scale in (1.0, _LARGE))
            return next(filter(None, by_size), "") or _written_or_drawn(traced)
        except Exception as error:  # whatever a layer of somebody's own raises
            return _failed(error)


def _offending_operations(network: keras.Model, offence_of: Callable[[Any, Any, Any], str]) -> list[str]:
    """Those of the network's operations that do what they must not, on random examples."""
    offenders: list[str] = []

    def probed(operation: Any) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with unchanged(_weights(operation)):
                try:
                    offence = offence_of(operation, args, kwargs)
                except Exception as error:  # whatever a layer of somebody's own raises
                    offence = _failed(error)
            if offence:
                offenders.append(_named(operation, offence))
            with unchanged(_weights(operation)):
                return _run(operation, args, kwargs)

        return call

    try:
        run_graph(network, _inputs(network), probed)
    except Exception:  # one of them, so there is nothing to run those behind it on
        if not offenders:
            raise
    return offenders


def _offence_of_layer(operation: Any, args: Any, kwargs: Any) -> str:
    return _offence(partial(_there_and_back, operation), args, kwargs, _weights(operation))


def _offence_of_graph(operation: Any, args: Any, kwargs: Any) -> str:
    there_and_back = tf.function(lambda: _there_and_back(operation, args, kwargs), autograph=False)
    return _written_or_drawn(there_and_back.get_concrete_function())


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


def _inputs(network: keras.Model, scale: float = 1.0) -> Any:
    """Random examples, of both signs; whole numbers, which may name rows of a table, are none or one."""
    random = np.random.default_rng(0)
    inputs = []
    for tensor in network.inputs:
        shape = _EXAMPLES, *tensor.shape[1:]
        floats = "float" in tensor.dtype
        values = scale * random.standard_normal(shape) if floats else random.integers(0, 2, shape)
        inputs.append(tf.constant(values, tf.float32))
    return inputs if len(inputs) > 1 else inputs[0]


def _all_between(network: keras.Model, inputs: Any) -> list[tf.Tensor]:
    """The outputs of every operation on the way, so that nothing can hide what happens there."""
    found: list[tf.Tensor] = []

    def seen(operation: Any) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            outputs = _run(operation, args, kwargs)
            found.extend(tree.flatten(outputs))
            return outputs

        return call

    run_graph(network, inputs, seen)
    return found


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


def _offence(
    run: Callable[[Any, Any], list[tf.Tensor]], args: Any, kwargs: Any, weights: Sequence[keras.Variable]
) -> str:
    """Empty where one example's outputs and gradients, and nothing else, depend on one example."""
    given = args, kwargs
    if not _has_examples(given):
        return ""

    def outputs(arguments: Any) -> list[np.ndarray]:
        with unchanged(weights):
            return [np.array(tf.cast(leaf, tf.float32)) for leaf in run(*arguments)]

    first = outputs(given)
    if any(leaf.shape[:1] != (_EXAMPLES,) for leaf in first):
        return "mixes examples"
    for example in range(_EXAMPLES):
        others = np.arange(_EXAMPLES) != example
        # Up and down: a minimum over the batch does not see a value rise, nor a maximum one fall.
        for scale, shift in ((1.7, 0.31), (0.6, -0.31)):
            moved = tree.map_structure(lambda leaf, s=scale, t=shift, i=example: _moved(leaf, i, s, t), given)
            if any(not np.array_equal(a[others], b[others], equal_nan=True) for a, b in zip(first, outputs(moved))):
                return "mixes examples"
    turned = outputs(tree.map_structure(lambda leaf: tf.roll(leaf, 1, 0) if _is_batch(leaf) else leaf, given))
    if not all(_close(np.roll(a, 1, 0), b) for a, b in zip(first, turned)):
        return "treats examples by their place"
    with unchanged(weights) as changed:
        run(*given)
    return "keeps what it sees" if changed else ""


def _there_and_back(operation: Any, args: Any, kwargs: Any) -> list[tf.Tensor]:
    """Outputs, and the gradients of half their squares with respect to inputs and to the outputs themselves.

    So each output's gradient is of its own size, and of one network's outputs (`_all_between`) each stands on the way back
    from those behind it.

    Raises:
      LookupError: TensorFlow knows no gradient of it.
    """
    # Copies: a tensor that enters twice has a gradient at each place, moved or not.
    given: Any = tree.map_structure(lambda leaf: tf.identity(leaf) if _is_batch(leaf) else leaf, (args, kwargs))
    entered = [leaf for leaf in tree.flatten(given) if _is_batch(leaf) and leaf.dtype.is_floating]
    with tf.GradientTape() as tape:
        tape.watch(entered)
        outputs = tree.flatten(_run(operation, *given))
        smooth = [leaf for leaf in outputs if leaf.dtype.is_floating]
        total = (
            tf.add_n([0.5 * tf.reduce_sum(tf.square(tf.cast(leaf, tf.float32))) for leaf in smooth]) if smooth else None
        )
    if total is None:
        return outputs
    back = tape.gradient(total, [*entered, *smooth], unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return [*outputs, *map(tf.convert_to_tensor, back)]


def _close(first: np.ndarray, second: np.ndarray) -> bool:
    finite = np.abs(first[np.isfinite(first)])
    return np.allclose(first, second, _CLOSE[0], _CLOSE[1] * max(1.0, finite.max(initial=0.0)), equal_nan=True)


def _weights(operation: Any) -> Sequence[keras.Variable]:
    return operation.variables if isinstance(operation, keras.Layer) else []


def _is_batch(leaf: Any) -> bool:
    return tf.is_tensor(leaf) and leaf.shape[:1] == [_EXAMPLES]


def _has_examples(given: Any) -> bool:
    return any(_is_batch(leaf) for leaf in tree.flatten(given))


def _moved(leaf: Any, example: int, scale: float, shift: float) -> Any:
    if not _is_batch(leaf) or not leaf.dtype.is_floating:
        return leaf
    return tf.tensor_scatter_nd_update(leaf, [[example]], [leaf[example] * scale + shift])


def _run(operation: Any, args: Any, kwargs: Any) -> Any:
    training = {"training": True} if getattr(operation, "_call_has_training_arg", False) else {}
    return operation(*args, **{**kwargs, **training})
