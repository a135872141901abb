"""Finds layers that mix examples, by what they do.

A clipped gradient bounds one record's influence only if example i's loss depends on example i alone. BatchNormalization is
the well-known offender; any layer can be one. So each operation of a network is run twice on random inputs that differ in
one example only: where another example's output moves, the layer mixes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from tf_dp2vae.validation import check

_EXAMPLES = 4


def refuse_mixing(networks: Sequence[keras.Model]) -> None:
    """Raises `InvalidInputError` naming every layer of the networks that mixes examples."""
    offenders = [name for network in networks for name in mixing_layers(network)]
    check(
        not offenders,
        f"layers mix examples, so clipping bounds nothing: {', '.join(offenders)}. Use GroupNormalization or "
        "LayerNormalization instead.",
    )


def mixing_layers(network: keras.Model) -> list[str]:
    """The layers (as `name (Type)`) whose output for one example depends on another."""
    offenders: list[str] = []

    def probed(operation: Any) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with _unchanged(operation):
                if _mixes(operation, args, kwargs):
                    offenders.append(f"{operation.name} ({type(operation).__name__})")
            with _unchanged(operation):
                return _run(operation, args, kwargs)

        return call

    random = np.random.default_rng(0)
    inputs = [tf.constant(random.random((_EXAMPLES, *tensor.shape[1:])), tf.float32) for tensor in network.inputs]
    functional = network._functional if isinstance(network, keras.Sequential) else network
    functional._run_through_graph(inputs, operation_fn=probed)
    return offenders


@contextmanager
def _unchanged(operation: Any) -> Iterator[None]:
    """Puts back moving statistics and the state of random layers (Dropout)."""
    variables = operation.variables if isinstance(operation, keras.Layer) else []
    before = [np.array(variable) for variable in variables]
    yield
    for variable, value in zip(variables, before):
        variable.assign(value)


def _mixes(operation: Any, args: Any, kwargs: Any) -> bool:
    def outputs(arguments: Any) -> list[np.ndarray]:
        with _unchanged(operation):
            return [np.array(tf.cast(leaf, tf.float32)) for leaf in tree.flatten(_run(operation, arguments, kwargs))]

    first = outputs(args)
    if any(leaf.shape[:1] != (_EXAMPLES,) for leaf in first):
        return _has_examples(args)
    for example in range(_EXAMPLES):
        others = np.arange(_EXAMPLES) != example
        # Up and down: a minimum over the batch does not see a value rise, nor a maximum one fall.
        for scale, shift in ((1.7, 0.31), (0.6, -0.31)):
            moved = tree.map_structure(lambda leaf, s=scale, t=shift, i=example: _moved(leaf, i, s, t), args)
            if any(not np.array_equal(a[others], b[others], equal_nan=True) for a, b in zip(first, outputs(moved))):
                return True
    return False


def _has_examples(args: Any) -> bool:
    return any(tf.is_tensor(leaf) and leaf.shape[:1] == [_EXAMPLES] for leaf in tree.flatten(args))


def _moved(leaf: Any, example: int, scale: float, shift: float) -> Any:
    if not tf.is_tensor(leaf) or not leaf.dtype.is_floating or leaf.shape[:1] != [_EXAMPLES]:
        return leaf
    return tf.tensor_scatter_nd_update(leaf, [[example]], [leaf[example] * scale + shift])


def _run(operation: Any, args: Any, kwargs: Any) -> Any:
    training = {"training": True} if getattr(operation, "_call_has_training_arg", False) else {}
    return operation(*args, **{**kwargs, **training})
