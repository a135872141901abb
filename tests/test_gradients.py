"""Clipped per-example gradient sums against the plain loop and against tensorflow-privacy's own optimizer."""

import logging

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import global_norm, loop_clipped_sum, randomised, relative_error
from keras import layers
from small_networks import batch_for, mixed_network, model_of, run, squared_loss

from tf_dp2vae.factors import MOST_AT_ONCE, ROUNDING, prefers_gram
from tf_dp2vae.gradients import BookKeepingEngine, ReferenceEngine, VectorizedMapEngine, make_engine
from tf_dp2vae.taps import Taps
from tf_dp2vae.validation import InvalidInputError

ENGINES = [BookKeepingEngine, VectorizedMapEngine, ReferenceEngine]
TOLERANCE = 1e-5


def shared_twice():
    inputs = keras.Input((4, 4, 2))
    shared, dense = layers.Conv2D(2, 3, padding="same", activation="tanh"), layers.Dense(2)
    return randomised(keras.Model(inputs, dense(shared(dense(shared(inputs))))))


def nested():
    inner = keras.Sequential([keras.Input((3,)), layers.Dense(4, activation="elu"), layers.Dense(3)])
    middle = model_of((3,), inner, layers.Activation("tanh"), layers.Dense(3))
    inputs = keras.Input((3,))
    return randomised(keras.Model(inputs, middle(inner(inputs)) + inputs))


def sequential():
    return randomised(keras.Sequential([keras.Input((3,)), layers.Dense(5, activation="relu"), layers.Dense(2)]))


def biases():
    """Their inputs are to be zeros."""
    return model_of((1, 1), layers.Dense(2))


def one_position():
    return model_of((1, 1), layers.Dense(2, use_bias=False))


def formed():
    return model_of((4, 1), layers.Dense(1, use_bias=False))


@pytest.mark.parametrize("build, pixel", [(biases, 0.0), (one_position, 1.0), (formed, 0.25)])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("num", [100, 300, MOST_AT_ONCE])
def test_one_example_moves_a_sum_by_no_more_than_the_clip_and_its_rounding(build, pixel, engine, num):
    """Where a sum stands at a power of two, one more or less decides whether hundreds of small numbers count or vanish."""
    network, half, engine = build(), 2 ** int(np.log2(num / 2)), engine()
    inputs = tf.fill([num, *network.inputs[0].shape[1:]], pixel)

    @tf.function
    def clipped_sum(slopes, mask):
        def loss(apply, batch):
            return batch[1] * tf.reduce_sum(apply(network, batch[0])[..., 0], axis=1)

        return engine.clipped_sum(loss, (inputs, slopes), mask, network.trainable_variables, 1.0)[0]

    furthest = 0.0
    for small in (0.74, 0.49, 0.26):
        slopes = np.full(num, -small * half * 2.0**-24)
        slopes[:half], slopes[half] = 1.0, 0.5
        for place in (0, half):
            masks = [np.ones(num), np.arange(num) != place]
            there, without = (clipped_sum(tf.constant(slopes, tf.float32), tf.constant(m, tf.float32)) for m in masks)
            furthest = max(furthest, global_norm([np.subtract(a, b, dtype=float) for a, b in zip(there, without)]))
    assert 1 - ROUNDING < furthest < 1 + ROUNDING


@pytest.mark.parametrize("build", [mixed_network, shared_twice, nested, sequential])
@pytest.mark.parametrize("engine", ENGINES)
def test_whole_networks_equal_the_plain_loop(build, engine):
    network = build()
    batch, mask, clip = batch_for(network, 4, 2), [1, 1, 0, 1], 0.7
    assert isinstance(make_engine("book-keeping", [network]), BookKeepingEngine)
    sums, _ = run(engine(), network, batch, mask, clip, draws=2)
    expected = loop_clipped_sum(squared_loss(network, 2), batch, mask, network.trainable_variables, clip)
    assert relative_error(sums, expected) < TOLERANCE


@pytest.mark.parametrize("engine", [BookKeepingEngine, VectorizedMapEngine])
def test_infinite_clip_is_the_ordinary_gradient(engine):
    network = mixed_network()
    batch = batch_for(network)
    sums, _ = run(engine(), network, batch, clip=float("inf"))
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(squared_loss(network)(lambda net, x: net(x, training=True), batch))
    assert relative_error(sums, tape.gradient(total, [v.value for v in network.trainable_variables])) < TOLERANCE


@pytest.mark.parametrize("engine", ENGINES)
def test_one_clip_over_all_variables(engine):
    network = mixed_network()
    sums, _ = run(engine(), network, batch_for(network, 1), clip=0.3)
    np.testing.assert_allclose(global_norm(sums), 0.3, rtol=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_padding_is_exactly_zero_whatever_it_holds(engine):
    network = mixed_network()
    inputs, shift = batch_for(network)
    zero, _ = run(engine(), network, (inputs, shift), [0, 0, 0, 0])
    assert all(not np.any(total) for total in zero)
    expected, _ = run(engine(), network, (inputs, shift), [1, 1, 0, 1])
    for garbage in (7.0, np.nan):
        polluted = tf.tensor_scatter_nd_update(inputs, [[2]], tf.fill([1, *inputs.shape[1:]], np.float32(garbage)))
        found, loss = run(engine(), network, (polluted, shift), [1, 1, 0, 1])
        assert all(np.array_equal(a, b) for a, b in zip(found, expected)) and np.isfinite(loss)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e25, 1e38])
def test_non_finite_example_counts_as_zero(engine, value):
    network = model_of((3,), layers.Dense(4, activation="softplus"), layers.Dense(2))
    inputs, shift = batch_for(network)
    expected, _ = run(engine(), network, (inputs, shift), [1, 0, 1, 1])
    broken = tf.tensor_scatter_nd_update(inputs, [[1, 0, 0]], [np.float32(value)])
    found, loss = run(engine(), network, (broken, shift))
    assert relative_error(found, expected) < TOLERANCE
    assert np.isfinite(loss)


@pytest.mark.parametrize("engine", ENGINES)
def test_huge_gradient_stays_within_the_clip(engine):
    network = model_of((3,), layers.Dense(4, activation="softplus"), layers.Dense(2))
    inputs, shift = batch_for(network)
    without, _ = run(engine(), network, (inputs, shift), [1, 0, 1, 1], clip=0.7)
    huge = tf.tensor_scatter_nd_update(inputs, [[1, 0, 0]], [np.float32(1e11)])
    found, _ = run(engine(), network, (huge, shift), clip=0.7)
    assert global_norm([a - b for a, b in zip(found, without)]) <= 0.7 * (1 + 1e-4)


class OwnDense(layers.Dense):
    """A subclass may compute anything, so no rule may claim it."""

    def call(self, inputs, training=None):
        return 2.0 * super().call(inputs)


class Block(layers.Layer):
    """A layer that holds another, as user code often does."""

    def __init__(self):
        super().__init__()
        self.inner = layers.Dense(3)

    def build(self, input_shape):
        self.inner.build(input_shape)

    def call(self, inputs):
        return inputs + self.inner(inputs)


@pytest.mark.parametrize("build", [lambda: layers.LayerNormalization(axis=1), lambda: OwnDense(3), Block])
def test_layers_without_a_rule_fall_back_and_say_so(build, caplog):
    odd = build()
    network = model_of((3,), layers.Dense(3, activation="tanh"), odd, layers.Dense(2))
    with caplog.at_level(logging.WARNING):
        engine = make_engine("book-keeping", [network])
    assert isinstance(engine, VectorizedMapEngine)
    assert type(odd).__name__ in caplog.text
    batch = batch_for(network)
    expected = loop_clipped_sum(squared_loss(network), batch, [1, 0, 1, 1], network.trainable_variables, 0.7)
    assert relative_error(run(engine, network, batch, [1, 0, 1, 1])[0], expected) < TOLERANCE


def test_layers_of_variables_that_are_not_trained_are_applied_as_they_are():
    """Their gradients would be computed, and thrown away, at the cost of the encoder's backward pass."""
    network = sequential()
    with tf.GradientTape() as tape:
        taps = Taps(tape, network.layers[1].trainable_variables)
        taps.apply(network, tf.ones([2, 3]))
    assert [tap.layer for tap in taps._taps] == network.layers[1:]


@pytest.mark.parametrize("layer", [layers.LSTM(3), layers.Bidirectional(layers.GRU(2)), layers.SimpleRNN(3)])
def test_recurrent_layers_fall_back_to_a_loop(layer):
    """TensorFlow cannot vectorise their way back once something before them is trained, too."""
    network = model_of((4,), layers.Dense(6, activation="tanh"), layers.Reshape((3, 2)), layer, layers.Dense(2))
    engine, batch, mask = make_engine("book-keeping", [network]), batch_for(network), [1, 0, 1, 1]
    expected = loop_clipped_sum(squared_loss(network), batch, mask, network.trainable_variables, 0.7)
    assert relative_error(run(engine, network, batch, mask, clip=0.7)[0], expected) < TOLERANCE
    compiled = tf.function(lambda *given: run(engine, network, given, mask, clip=0.7)[0])
    assert relative_error(compiled(*batch), expected) < TOLERANCE


def test_reference_engine_is_refused_where_a_layer_makes_its_gradients_itself():
    """Of a whole batch it may make them of all examples' inputs."""
    with pytest.raises(InvalidInputError, match="OwnDense.*choose engine='book-keeping'"):
        make_engine("reference", [model_of((3,), OwnDense(3))])


def test_whole_numbers_go_into_dense_layers():
    network = model_of((3,), layers.Discretization(bin_boundaries=[-0.5, 0.0, 0.5]), layers.Dense(2))
    batch = batch_for(network)
    expected = loop_clipped_sum(squared_loss(network), batch, [1] * 4, network.trainable_variables, 0.7)
    assert relative_error(run(BookKeepingEngine(), network, batch, clip=0.7)[0], expected) < TOLERANCE


def test_a_tiny_factor_and_a_huge_one_stay_within_the_clip():
    """The square of the tiny one is no number of float32; the product of both is one."""
    inputs = keras.Input((16,))
    network = keras.Model(inputs, layers.Dense(16, use_bias=False)(inputs))
    assert prefers_gram(1, 16, 16)

    @tf.function
    def clipped_sum(left, right, clip):
        def loss(apply, batch):
            return tf.reduce_sum(apply(network, batch[0]) * batch[1], 1)

        batch = tf.fill([1, 16], left), tf.fill([1, 16], right)
        return BookKeepingEngine().clipped_sum(loss, batch, tf.ones([1]), network.trainable_variables, clip)[0]

    for left, right in ((5e-20, 4e18), (4e18, 5e-20), (1e-19, 4e18)):
        for clip in (0.1, 1.0):
            sums = clipped_sum(*(tf.constant(number) for number in (left, right, clip)))
            assert 0 < global_norm(sums) <= clip * (1 + 1e-6)


@pytest.mark.parametrize("odd", [0.0, np.nan, np.inf])
def test_xla_gives_the_same(odd):
    network = mixed_network()
    inputs, shift = batch_for(network)
    compiled = tf.function(lambda *b: run(BookKeepingEngine(), network, b, [1, 0, 1, 1])[0], jit_compile=True)
    batch = inputs + tf.constant([0, 0, 0, odd])[:, None, None], shift
    expected = loop_clipped_sum(
        squared_loss(network), batch, [1, 0, 1, np.isfinite(odd)], network.trainable_variables, 0.7
    )
    assert relative_error(compiled(*batch), expected) < TOLERANCE


@pytest.mark.parametrize("xla", [False, True])
@pytest.mark.parametrize("num", [161, 330, 331, 640])
def test_a_large_sum_is_that_of_small_ones(num, xla):
    """Two pieces, three and four equal ones, three that cannot be; small ones are compared with the plain loop above."""
    network, mask = mixed_network(), np.random.default_rng(0).integers(0, 2, num).astype(np.float32)
    batch = batch_for(network, num)
    summed = tf.function(lambda mask, *b: run(BookKeepingEngine(), network, b, mask)[0], jit_compile=xla)
    small = [summed(mask[at : at + 90], *(leaf[at : at + 90] for leaf in batch)) for at in range(0, num, 90)]
    assert relative_error(summed(mask, *batch), [np.sum(parts, axis=0) for parts in zip(*small)]) < TOLERANCE


def test_unknown_engine_is_refused():
    with pytest.raises(ValueError, match="magic"):
        make_engine("magic", [mixed_network()])


class Inside(layers.Layer):
    """A product of matrices with an axis of one record before theirs, in a function of its own."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 3))

    def call(self, inputs):
        return tf.function(tf.matmul)(inputs[:, None], self.kernel.value)


def attended(tokens):
    return layers.MultiHeadAttention(2, 4)(tokens, tokens)


@pytest.mark.parametrize(
    "layer, looped",
    [
        (layers.EinsumDense("abc,cd->abd", (16, 3)), True),
        (attended, True),
        (Inside(), True),
        (layers.DepthwiseConv1D(3), False),
        (layers.GRU(3), False),
    ],
    ids=["EinsumDense", "attention", "in a function", "convolution", "recurrent"],
)
def test_what_oneDNN_may_crash_on_when_vectorised_is_looped_over(layer, looped, monkeypatch):
    """A crash is no exception: it would end this very process."""
    tokens = keras.Input((16, 4))
    network = randomised(keras.Model(tokens, layers.Dense(2)(layers.Flatten()(layer(tokens)))))
    engine, batch, mask, loops = make_engine("book-keeping", [network]), batch_for(network, 64), np.ones(64), []
    plain_map = tf.map_fn
    monkeypatch.setattr(tf, "map_fn", lambda *given, **named: loops.append(1) or plain_map(*given, **named))
    sums, _ = run(engine, network, batch, mask, clip=0.7)
    assert bool(loops) == looped
    expected = loop_clipped_sum(squared_loss(network), batch, mask, network.trainable_variables, 0.7)
    assert relative_error(sums, expected) < TOLERANCE
