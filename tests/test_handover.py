"""Arrays for TensorFlow: where they begin, that it takes them as they are, and that no two batches share one."""

import numpy as np
import pytest
import tensorflow as tf
from conftest import some_records
from hypothesis import given
from hypothesis import strategies as st

from tf_dp2vae.handover import aligned_zeros
from tf_dp2vae.randomness import SystemEntropy
from tf_dp2vae.sampling import PoissonSource


@given(
    shape=st.lists(st.integers(0, 9), max_size=4), dtype=st.sampled_from([np.uint8, np.int32, np.float32, np.float64])
)
def test_zeros_begin_at_a_multiple_of_64_bytes_and_are_otherwise_numpys(shape, dtype):
    zeros = aligned_zeros(tuple(shape), dtype)
    assert zeros.ctypes.data % 64 == 0 or not zeros.size
    assert zeros.dtype == dtype and zeros.flags.c_contiguous and zeros.flags.writeable
    np.testing.assert_array_equal(zeros, np.zeros(shape, dtype))


@pytest.mark.parametrize("offset, taken_over", [(0, True), (2, False)])
def test_tensorflow_copies_only_what_begins_elsewhere(offset, taken_over):
    """Were this to change, the copy of a whole vector of noise would come back without a word."""
    array = aligned_zeros((100_000,), np.float64)[offset:]
    tensor = next(iter(tf.data.Dataset.range(1).map(lambda _: tf.numpy_function(lambda: array, [], tf.float64))))
    assert np.shares_memory(tensor._numpy(), array) == taken_over


def test_each_batch_has_memory_of_its_own():
    """TensorFlow keeps what it took over: noise drawn into it again would change under the step that adds it."""
    source = PoissonSource(some_records(40), 0.5, 16, SystemEntropy(), 5)
    arrays = [array for _ in range(3) for array in tf.nest.flatten(source.batch()) if np.ndim(array)]
    for index, array in enumerate(arrays):
        assert array.ctypes.data % 64 == 0
        assert not any(np.shares_memory(array, other) for other in arrays[:index])
