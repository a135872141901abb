"""The size of a chunk: what is counted, and that neither memory nor the number of chunks gets out of hand."""

import math

import keras
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers
from small_networks import model_of

from tf_dp2vae import chunks
from tf_dp2vae.chunks import chunk_size, held
from tf_dp2vae.factors import MOST_AT_ONCE


def dense():
    return model_of((4,), layers.Dense(6), layers.Dense(5))


def convolutional():
    return model_of((3,), layers.Dense(32), layers.Reshape((4, 4, 2)), layers.Conv2DTranspose(3, 4, 2, "same"))


def test_dense_layers_of_one_position_hold_nothing_besides():
    assert held([dense()]) == (4 * 2 * (6 + 5), 0)
    assert held([dense()], draws=2).ordinary == 2 * held([dense()]).ordinary


def test_windows_and_the_formed_product_are_counted():
    positions, m, n = 16, 4 * 4 * 3, 2
    outputs = 32 + 32 + 8 * 8 * 3
    assert held([convolutional()]) == (4 * 2 * outputs, 4 * 1.25 * (positions * m + m * n))


def test_gram_matrices_are_counted_where_that_way_is_taken():
    positions, m, n = 6, 48, 40
    assert held([model_of((positions, m), layers.Dense(n))]).besides == 4 * 1.25 * 2 * positions**2


def test_nested_and_shared_layers_count_each_use():
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(4)])
    assert held([model_of((4,), inner, layers.Dense(2))]).ordinary == 4 * 2 * (4 + 2)
    shared = layers.Dense(4)
    assert held([model_of((4,), shared, shared)]).ordinary == 4 * 2 * (4 + 4)


@settings(max_examples=100)
@given(
    num=st.integers(1, 100_000),
    rate=st.floats(1e-4, 1),
    draws=st.integers(1, 3),
    conv=st.booleans(),
    part=st.floats(0.5, 1),
    negligible=st.sampled_from([0, 10**5]),
    budget=st.sampled_from([10**5, 10**8]),
)
def test_chunks_have_room_for_usual_batches_and_stay_within_the_limit(num, rate, draws, conv, part, negligible, budget):
    networks = [NETWORKS[conv]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "_PART", part)
        patch.setattr(chunks, "_NEGLIGIBLE", negligible)
        patch.setattr(chunks, "_BUDGET", budget)
        size, expected = chunk_size(networks, num, rate, draws), rate * num
    assert 1 <= size <= num
    ordinary, besides = held(networks, draws)
    limit = max(min(max(part * expected * ordinary, negligible), budget) / (ordinary + besides), 1.0)
    limit = min(limit, MOST_AT_ONCE)
    assert size < limit + 1
    room = min(expected + 2 * math.sqrt(expected * (1 - rate)), num)
    assert math.ceil(room / size) <= math.ceil(room / limit), "more chunks than the limit asks for"


NETWORKS = {False: dense(), True: convolutional()}


@pytest.mark.parametrize("conv", [False, True])
def test_memory_is_flat_once_the_budget_is_reached(conv, monkeypatch):
    monkeypatch.setattr(chunks, "_BUDGET", 100_000)
    sizes = [chunk_size([NETWORKS[conv]], 10**7, batch / 10**7) for batch in (10_000, 100_000, 1_000_000)]
    assert max(sizes) - min(sizes) <= 0.05 * max(sizes)


def test_a_batch_that_fits_is_one_chunk():
    assert chunk_size([dense()], 50, 1.0) == 50
