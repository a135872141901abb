"""Per-example gradients of one weight, kept as the factors that an ordinary backward pass leaves behind.

    Products  dL_i/dW = left_iᵀ right_i over positions: kernels of dense and convolutional layers
    Vectors   the gradient itself: biases, scales and shifts
    Rows      a few rows of a table: embeddings

Each kind knows its examples' squared norms and a weighted sum over examples. For `Products` there are two ways, and
`prefers_gram` counts which is cheaper:

    product  G_i = left_iᵀ right_i is formed; its norm is read off, and the weighted sum is one vector-matrix product
             over all G_i, so the ordinary weight gradient is never computed.
    Gram     ‖G_i‖² from a Gram matrix over positions (`_gram_squared_norms`), and the weighted sum is the ordinary weight
             gradient of factors scaled by the weights. With one position this is the ghost rule ‖left‖² ‖right‖².

Reference: Goodfellow 2015, "Efficient per-example gradient computations"; Li et al. 2022, section 4; Bu et al. 2023.
Neither reuses the formed product for the sum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import tensorflow as tf
from tensorflow.python.ops import control_flow_util

_OPERATIONS_PER_BYTE = 2.0
"""Multiply-additions in the time that one byte takes to or from memory; `benchmarks/parts.py` measures both."""

_LANES = 8
"""Numbers that a vector instruction takes at once; a little more or less makes no difference."""

MOST_AT_ONCE = 1024
"""Examples whose gradients may be added in float32."""

_PIECE = 160
"""Examples whose gradients are added in any order; the sums of so many are added then."""

ROUNDING = 0.005
"""Part of the clip C by which one example may move a sum besides by its own gradient: where it is added, others are rounded
differently. With u = 2⁻²⁴, 160 vectors of norm C are added with an error below 160 u · 160 C, in any order, and 7 such sums
with one below 7 u · 1024 C; with the example as without it, in all 2⁻⁸ C = 0.0039 C. The rest is for what else is rounded:
norms, and a sum at its end."""

_LEAST_NORM = 2.0**-23
"""Of a squared norm, relative to (Σ_p ‖left_p‖ ‖right_p‖)². Sums of scaled factors in float32 err by some 2⁻²³ of that Σ.
So where positions cancel, and norms are taken for 2⁻¹¹·⁵ of it, a record exceeds the clip by some 2⁻¹¹·⁵ of the clip."""

_NULL = 1e-60
"""Of a squared norm, in the place of zero."""


class PerExample(Protocol):
    """The gradients of one weight, one for each example."""

    def squared_norms(self) -> tf.Tensor:
        """‖g_i‖², [examples]."""
        ...

    @property
    def parts(self) -> list[tf.Tensor]:
        """What the sum is made of, each [examples, …]; zeros there are a gradient of zeros."""
        ...

    def weighted_sum(self, weights: tf.Tensor, *parts: tf.Tensor) -> tf.Tensor:
        """Σ_i weights_i g_i of finite parts, flat, in the order of the weight's own numbers."""
        ...

    def joined(self, other: Any) -> PerExample:
        """The sum of both gradients, for a weight that is used twice."""
        ...


@dataclass(frozen=True)
class Vectors:
    """The gradients themselves.

    Attributes:
      values: [examples, size].
    """

    values: tf.Tensor

    def squared_norms(self) -> tf.Tensor:
        return _squared_rows(self.values)

    @property
    def parts(self) -> list[tf.Tensor]:
        return [self.values]

    def weighted_sum(self, weights: tf.Tensor, *parts: tf.Tensor) -> tf.Tensor:
        return weighted_rows(weights, *parts)

    def joined(self, other: Vectors) -> Vectors:
        return Vectors(self.values + other.values)


@dataclass(frozen=True)
class Products:
    """Gradients `left_iᵀ right_i`, one such product for each group of a grouped convolution (else one).

    Attributes:
      left: [examples, groups, positions, m].
      right: [examples, groups, positions, n].
    """

    left: tf.Tensor
    right: tf.Tensor

    @cached_property
    def _formed(self) -> tf.Tensor:
        """[examples, groups·m·n], or [examples, groups·n·m] where `_narrow`."""
        first, second = (self.right, self.left) if self._narrow else (self.left, self.right)
        product = tf.linalg.matmul(first, second, transpose_a=True)
        return tf.reshape(product, [self.left.shape[0], -1])

    @property
    def _narrow(self) -> bool:
        """Whether the product is faster the other way round: vector units stay idle over a short last axis."""
        m, n = (int(factor.shape[3]) for factor in (self.left, self.right))
        return n < min(_LANES, m)

    @property
    def _forms(self) -> bool:
        positions, m = self.left.shape[2:]
        return not prefers_gram(positions, m, self.right.shape[3])

    def squared_norms(self) -> tf.Tensor:
        if self._forms:
            return _squared_rows(self._formed)
        if self.left.shape[2] == 1:
            return tf.reduce_sum(_at_least(self.left) * _at_least(self.right), axis=(1, 2))
        return _gram_squared_norms(self.left, self.right)

    @property
    def parts(self) -> list[tf.Tensor]:
        return [self._formed] if self._forms else [self.left, self.right]

    def weighted_sum(self, weights: tf.Tensor, *parts: tf.Tensor) -> tf.Tensor:
        groups, m, n = self.left.shape[1], self.left.shape[3], self.right.shape[3]
        if self._forms and self._narrow:
            total = tf.transpose(tf.reshape(weighted_rows(weights, *parts), [groups, n, m]), [0, 2, 1])
        elif self._forms:
            total = tf.reshape(weighted_rows(weights, *parts), [groups, m, n])
        else:
            (left, right), scale = parts, tf.reshape(weights, [-1, 1, 1, 1])
            left, right = (left * scale, right) if m < n else (left, right * scale)
            total = _matmul_in_pieces(left, right)
        return tf.reshape(total if groups == 1 else tf.transpose(total, [1, 0, 2]), [-1])

    def joined(self, other: Products) -> Products:
        """The positions of one after the other's."""
        return Products(tf.concat([self.left, other.left], 2), tf.concat([self.right, other.right], 2))


@dataclass(frozen=True)
class Rows:
    """Gradients of a table of which each example looked up some rows.

    Attributes:
      indices: [examples, positions], which row.
      values: [examples, positions, n], the gradient at what was looked up.
      num_rows: of the table.
    """

    indices: tf.Tensor
    values: tf.Tensor
    num_rows: int

    def squared_norms(self) -> tf.Tensor:
        """The Gram rule with one-hot factors, or sums a row where the table is smaller than positions²."""
        examples, positions, n = (int(size) for size in self.values.shape)
        values = tf.cast(self.values, tf.float64)
        if positions**2 * (n + 1) <= self.num_rows * n:
            same = tf.cast(self.indices[:, :, None] == self.indices[:, None, :], tf.float64)
            inner = tf.linalg.matmul(values, values, transpose_b=True)
            squared = tf.reduce_sum(same * inner, axis=(1, 2))
        else:
            own = self.indices + self.num_rows * tf.range(examples)[:, None]
            tables = tf.math.unsorted_segment_sum(values, own, examples * self.num_rows)
            squared = _squared_rows(tf.reshape(tables, [examples, -1]))
        return _with_least(squared, tf.reduce_sum(tf.sqrt(_squared_last(values)), axis=1))

    @property
    def parts(self) -> list[tf.Tensor]:
        return [self.values]

    def weighted_sum(self, weights: tf.Tensor, *parts: tf.Tensor) -> tf.Tensor:
        """In float64: rows are added one after the other, and many equal ones in float32 would round all one way."""
        scaled = tf.cast(parts[0] * weights[:, None, None], tf.float64)
        table = tf.math.unsorted_segment_sum(scaled, self.indices, self.num_rows)
        return tf.reshape(tf.cast(table, self.values.dtype), [-1])

    def joined(self, other: Rows) -> Rows:
        indices = tf.concat([self.indices, other.indices], 1)
        return Rows(indices, tf.concat([self.values, other.values], 1), self.num_rows)


def prefers_gram(positions: int, m: int, n: int) -> bool:
    """Whether the Gram rule costs less than the product, for each example's [positions, m]ᵀ [positions, n].

    Both count multiply-additions, and bytes as the multiply-additions of equal time: a formed product is written once and
    read twice. The Gram matrix and its root are of float64, which counts twice, and so is the narrower factor for them; what
    the root makes of the wider one is written and read once, and both factors are read again for the sum.
    """
    narrow, wide = sorted((m, n))
    product = positions * m * n + _OPERATIONS_PER_BYTE * 4 * 3 * m * n
    gram = positions**2 * (2 * narrow + wide + positions) + positions * m * n
    gram += _OPERATIONS_PER_BYTE * 4 * (2 * 3 * 2 * positions**2 + positions * (2 * (m + n) + 3 * narrow + 2 * wide))
    return gram < product


def weighted_sums(gradients: Sequence[PerExample], norms: tf.Tensor, weights: tf.Tensor) -> list[tf.Tensor]:
    """Each weight's Σ_i weights_i g_i, flat, where a zero weight silences even a non-finite example.

    A product with zero would let NaN through, and to replace it in every part costs more passes over memory than the sum
    itself. So that is done only when some norm is not finite; while all are, so is every part.
    """
    parts = [gradient.parts for gradient in gradients]

    def silenced() -> list[list[tf.Tensor]]:
        return tf.nest.map_structure(lambda part: null_unless(weights > 0, part), parts)

    # XLA silences in passing, and would copy what goes through a branch.
    finite = silenced() if inside_xla() else tf.cond(tf.reduce_all(tf.math.is_finite(norms)), lambda: parts, silenced)
    return [gradient.weighted_sum(weights, *own) for gradient, own in zip(gradients, finite)]


def _gram_squared_norms(left: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
    """‖leftᵀ right‖² of each example, as ‖Cᵀ wide‖² where C Cᵀ is the Gram matrix of the narrower factor.

    The sum Σ_pq of both Gram matrices' products, which is the same, loses what is left where positions cancel: in float32 it
    errs by as much as the largest of them. A norm of Cᵀ wide errs by its own rounding. C is found in float64, and with a
    diagonal raised by as much as gives each norm its least size.
    """
    narrow, wide = (left, right) if left.shape[3] < right.shape[3] else (right, left)
    exact = tf.cast(narrow, tf.float64)
    gram = tf.linalg.matmul(exact, exact, transpose_b=True)
    least = 1 + int(narrow.shape[2]) * _LEAST_NORM
    raised = tf.linalg.set_diag(gram, tf.linalg.diag_part(gram) * least + _NULL)
    root = tf.cast(tf.linalg.cholesky(raised), wide.dtype)  # NaN where something is not finite
    mixed = tf.linalg.matmul(root, wide, transpose_a=True)
    return _squared_rows(tf.reshape(mixed, [mixed.shape[0], -1]))


def _with_least(squared: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Squared norms plus what they are at least taken for (`_LEAST_NORM`), float64 → float32."""
    return tf.cast(tf.maximum(squared, 0.0) + _LEAST_NORM * tf.square(size), tf.float32)


def _matmul_by_group(left: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
    """Σ leftᵀ right over examples and positions, [groups, m, n]; without the axis of groups where there is one.

    One group goes through the plain kernel, which is quicker than a batch of one.
    """
    groups = left.shape[1]
    if groups == 1:
        rows = (tf.reshape(factor, [-1, factor.shape[-1]]) for factor in (left, right))
        return tf.linalg.matmul(*rows, transpose_a=True)
    by_group = (
        tf.reshape(tf.transpose(factor, [1, 0, 2, 3]), [groups, -1, factor.shape[-1]]) for factor in (left, right)
    )
    return tf.linalg.matmul(*by_group, transpose_a=True)


def _matmul_in_pieces(left: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
    """`_matmul_by_group`, piece by piece; more than two pieces of equal size by one kernel for all of them.

    These may be nearly twice as many. p pieces of s examples each err by less than (s² + p·ps) u C where one example is
    added, which `ROUNDING` allows for: never more than 2¹⁵ u C.
    """
    examples, groups = (int(size) for size in left.shape[:2])
    pieces = next((count for count in range(pieces_of(examples), 2 * pieces_of(examples)) if examples % count == 0), 1)
    if groups > 1 or pieces < 3 or inside_xla():
        return _added(_matmul_by_group, left, right)
    by_piece = (tf.reshape(factor, [pieces, -1, factor.shape[-1]]) for factor in (left, right))
    return tf.reduce_sum(tf.linalg.matmul(*by_piece, transpose_a=True), axis=0)


def null_unless(keep: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Zeros in place of the examples where `keep`, [examples], is false."""
    where = tf.reshape(keep, [-1] + [1] * (factor.shape.rank - 1))
    return tf.where(where, factor, tf.zeros([], factor.dtype))


def _at_least(factor: tf.Tensor) -> tf.Tensor:
    """Squared norms along the last axis, plus what squares of numbers below 1e-19 lose: the other factor may be huge."""
    return _squared_last(factor) + int(factor.shape[-1]) * np.finfo(np.float32).tiny


def _squared_last(factor: tf.Tensor) -> tf.Tensor:
    """Squared norms along the last axis."""
    return tf.reshape(_squared_rows(tf.reshape(factor, [-1, factor.shape[-1]])), factor.shape[:-1])


def _squared_rows(rows: tf.Tensor) -> tf.Tensor:
    """[examples, size] → [examples]. TensorFlow's own kernel reads once where square and sum write and read again."""
    if inside_xla():
        return tf.reduce_sum(tf.square(rows), axis=1)
    return tf.square(tf.math.reduce_euclidean_norm(rows, axis=1))


def weighted_rows(weights: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    """Σ_i weights_i rows_i, for weights [examples] and rows [examples, size].

    XLA's product of a vector and a matrix walks columns on a CPU; its fused sum does not.
    """
    if inside_xla():
        return _added(lambda scaled: tf.reduce_sum(scaled, axis=0), weights[:, None] * rows)
    total = _added(lambda across, some: tf.linalg.matmul(across, some, transpose_a=True), weights[:, None], rows)
    return tf.reshape(total, [-1])


def pieces_of(examples: int) -> int:
    """How many pieces so many examples are added in."""
    return -(-examples // _PIECE)


def _added(add: Callable[..., tf.Tensor], *factors: tf.Tensor) -> tf.Tensor:
    """The sum over examples, piece by piece: `add` gives that over some of them, from their part of each factor."""
    examples = int(factors[0].shape[0])
    size = -(-examples // pieces_of(examples))
    sizes = [min(size, examples - start) for start in range(0, examples, size)]
    return tf.add_n([add(*piece) for piece in zip(*(tf.split(factor, sizes) for factor in factors))])


def inside_xla() -> bool:
    """Whether what is being traced will be compiled by XLA, whose kernels have other strengths than TensorFlow's own."""
    return control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())
