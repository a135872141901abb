"""How many examples of a Poisson batch are processed at once, where nobody says.

Few large chunks are faster than many small ones, whose kernels are dispatched for little work. Memory sets the limit: a
chunk may hold little more than an ordinary step on the whole batch would (or what is negligible beside the program
itself), and no more than a fixed budget, beyond which memory stays flat however large the batch. All are counted from
shapes. Nor may more be added in float32 than rounding allows for (`factors`). Below that, privacy does not depend on it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import keras

from tf_dp2vae.factors import MOST_AT_ONCE, prefers_gram
from tf_dp2vae.layer_rules import rule_for
from tf_dp2vae.taps import is_graph

_BUDGET = 96 * 2**20
"""Bytes that a chunk may hold."""

_PART = 1.3
"""Of what an ordinary step on the whole batch holds beside the program itself; in all, a step then takes up to half more."""

_NEGLIGIBLE = 22 * 2**20
"""Bytes that are not worth a smaller chunk: the compiled step itself takes more."""

_FLOAT, _OUTPUTS, _FACTORS = 4, 2.0, 1.25
"""Bytes of a number, and how often it is held at once: outputs beside their gradients; factors, and some of them again as a
kernel wants them laid out. Measured as the growth of resident memory with the chunk."""

_SLACK = 2.0
"""Deviations of the batch's size that the chunks have room for; one batch in 40 needs another chunk."""


class Held(NamedTuple):
    """Bytes for each example: what an ordinary step holds, and what book-keeping holds besides."""

    ordinary: float
    besides: float


def held(networks: Sequence[keras.Model], draws: int = 1) -> Held:
    """Counts what the networks' layers hold for one example.

    Args:
      networks: those that are trained.
      draws: K latent draws of each example.
    """
    ordinary = besides = 0
    for layer, inputs, outputs in _uses(networks):
        ordinary += math.prod(outputs) * draws
        kernel = getattr(layer, "kernel", None)
        if kernel is not None and layer.trainable_variables and rule_for(layer) is not None:
            besides += _factors(tuple(kernel.shape), min(math.prod(inputs[:-1]), math.prod(outputs[:-1])) * draws)
    return Held(_FLOAT * _OUTPUTS * ordinary, _FLOAT * _FACTORS * besides)


def _uses(networks: Sequence[Any]) -> Iterator[tuple[Any, tuple[int, ...], tuple[int, ...]]]:
    """Each use of a layer, with the shapes of its first input and output."""
    for network in networks:
        for layer in network.layers:
            if is_graph(layer):
                yield from _uses([layer])
                continue
            for node in layer._inbound_nodes:
                if node.input_tensors and node.output_tensors:
                    yield layer, tuple(node.input_tensors[0].shape[1:]), tuple(node.output_tensors[0].shape[1:])


def _factors(kernel: tuple[int, ...], positions: int) -> int:
    """Numbers in one layer's factors: windows, and the formed product or two Gram matrices."""
    if positions == 1:
        return 0
    m, n = math.prod(kernel[:-1]), kernel[-1]
    windows = positions * m if len(kernel) > 2 else 0
    return windows + (2 * positions**2 if prefers_gram(positions, m, n) else m * n)


def chunk_size(networks: Sequence[keras.Model], num_records: int, sampling_rate: float, draws: int = 1) -> int:
    """The examples in a chunk: as few chunks as memory and rounding allow, of equal size.

    Args:
      networks: those that are trained.
      num_records: N.
      sampling_rate: q; the batch has q·N examples on average, and deviation √(q(1 − q)N).
      draws: K latent draws of each example.
    """
    expected = sampling_rate * num_records
    ordinary, besides = held(networks, draws)
    in_memory = min(max(_PART * expected * ordinary, _NEGLIGIBLE), _BUDGET) / max(ordinary + besides, 1)
    limit = max(min(in_memory, MOST_AT_ONCE), 1.0)
    room = min(expected + _SLACK * math.sqrt(expected * (1 - sampling_rate)), num_records)
    return math.ceil(room / math.ceil(room / limit))
