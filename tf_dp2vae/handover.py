"""Arrays that TensorFlow takes over as they are, where it would copy others.

A NumPy array that a `numpy_function` returns becomes a tensor without a copy if it begins at a multiple of what TensorFlow's
kernels align vectors to. NumPy's own begin 16 bytes behind one where they are large. Whoever hands an array over must not
write to it any more.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

_ALIGNED = 64
"""Bytes: the most that any build of TensorFlow asks for (EIGEN_MAX_ALIGN_BYTES)."""


def aligned_zeros(shape: tuple[int, ...], dtype: npt.DTypeLike) -> np.ndarray:
    """`np.zeros`, at an address that TensorFlow can use."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    room = np.zeros(size + _ALIGNED, np.uint8)
    start = -room.ctypes.data % _ALIGNED
    return room[start : start + size].view(dtype).reshape(shape)
