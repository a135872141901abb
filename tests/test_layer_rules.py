"""Every layer's rule against the plain loop, over shapes, and what the two ways to a norm must both keep."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import global_norm, loop_clipped_sum, relative_error
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from keras import layers
from small_networks import batch_for, model_of, run, squared_loss

from tf_dp2vae import factors
from tf_dp2vae.gradients import BookKeepingEngine, ReferenceEngine, make_engine

TOLERANCE = 1e-5
ROWS = 40  # of embeddings: more than the tokens that occur, so that both ways to a norm are taken
CONVOLUTIONS = [layers.Conv1D, layers.Conv2D, layers.Conv3D]
TRANSPOSED = [layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose]


@st.composite
def dense(draw):
    shape = draw(st.sampled_from([(3,), (2, 3), (2, 2, 3)]))
    units = draw(st.integers(1, 4))
    return lambda **options: model_of(shape, layers.Dense(units, **options))


@st.composite
def convolutions(draw):
    rank = draw(st.integers(1, 3))
    transposed = draw(st.booleans())
    groups = 1 if transposed else draw(st.sampled_from([1, 1, 2, 3]))
    few = st.integers(1, 3 if rank < 3 else 2)
    kernel = tuple(draw(few) for _ in range(rank))
    strides = tuple(draw(few) for _ in range(rank))
    options = {"strides": strides, "padding": draw(st.sampled_from(["same", "valid"]))}
    if max(strides) == 1:
        options["dilation_rate"] = tuple(draw(few) for _ in range(rank))
        options["padding"] = draw(
            st.sampled_from(["same", "valid", "causal"] if rank == 1 and not transposed else ["same", "valid"])
        )
    if transposed and min(strides) > 1:
        options["output_padding"] = draw(st.sampled_from([None, 1]))
    if groups > 1:
        options["groups"] = groups
    least = 7 if rank < 3 else 3
    shape = (*(draw(st.integers(least, least + 2)) for _ in range(rank)), groups * draw(st.integers(1, 2)))
    filters = groups * draw(st.integers(1, 2))
    layer = (TRANSPOSED if transposed else CONVOLUTIONS)[rank - 1]
    return lambda **given: model_of(shape, layer(filters, kernel, **options, **given))


@st.composite
def normalisations(draw):
    shape = (*draw(st.sampled_from([(), (3,), (2, 3)])), 4)
    options = draw(st.sampled_from([{}, {"scale": False}, {"center": False}]))
    groups = draw(st.sampled_from([None, 1, 2, 4]))
    if groups:
        return lambda **_: model_of(shape, layers.GroupNormalization(groups, **options))
    axes = list(range(-draw(st.integers(1, len(shape))), 0))
    return lambda **_: model_of(shape, layers.LayerNormalization(axis=axes, **options))


@st.composite
def embeddings(draw):
    shape = draw(st.sampled_from([(1,), (3,), (2, 3)]))
    size = draw(st.integers(1, 4))
    return lambda **_: model_of(shape, layers.Embedding(ROWS, size), dtype="int32")


@settings(max_examples=120)
@given(
    build=st.one_of(dense(), convolutions(), convolutions(), normalisations(), embeddings()),
    options=st.fixed_dictionaries({"use_bias": st.booleans(), "activation": st.sampled_from([None, "tanh"])}),
    mask=st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=3),
    draws=st.integers(1, 2),
    clip=st.sampled_from([0.05, 2.0, 1e6]),
    gram=st.booleans(),
)
def test_each_layer_equals_the_plain_loop(build, options, mask, draws, clip, gram):
    network = build(**options)
    batch = batch_for(network, len(mask), draws)
    engine = make_engine("book-keeping", [network])
    assert isinstance(engine, BookKeepingEngine)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(factors, "prefers_gram", lambda positions, m, n: (gram and positions <= 8) or positions == 1)
        try:
            sums, losses = run(engine, network, batch, mask, clip, draws)
        except tf.errors.InvalidArgumentError as error:
            assume("dilation" not in str(error))  # some processors' kernels have no dilated transposed convolution
            raise
    loss = squared_loss(network, draws)
    plain = loop_clipped_sum(loss, batch, mask, network.trainable_variables, clip)
    # A Gram rule adds its rounding to the norm, which shows where a few positions happen to cancel.
    # Clipped gradients of several examples may cancel to nothing: rounding is relative to what was added up.
    alone = [mask * unit for unit in np.eye(len(mask))]
    terms = [loop_clipped_sum(loss, batch, one, network.trainable_variables, clip) for one in alone]
    differences = [a.numpy() - b for a, b in zip(sums, plain, strict=True)]
    scale = max(sum(map(global_norm, terms)), 1e-12)
    assert global_norm(differences) / scale < (1e-4 if gram else TOLERANCE)
    expected = np.sum(loss(lambda net, x: net(x), batch).numpy() * mask)
    np.testing.assert_allclose(losses, expected, rtol=1e-4, atol=1e-4)


EACH_KIND = {
    "dense": lambda: model_of((3,), layers.Dense(4)),
    "positions": lambda: model_of((2, 3), layers.Dense(4)),
    "Gram by its own choice": lambda: model_of((6, 48), layers.Dense(40)),
    "conv": lambda: model_of((5, 4, 2), layers.Conv2D(3, 3, strides=2)),
    "grouped": lambda: model_of((5, 4), layers.Conv1D(4, 3, groups=2)),
    "causal": lambda: model_of((6, 2), layers.Conv1D(3, 2, padding="causal", dilation_rate=2)),
    "volumes": lambda: model_of((3, 4, 3, 2), layers.Conv3DTranspose(2, 2, strides=2)),
    "transposed": lambda: model_of((3, 2, 2), layers.Conv2DTranspose(2, 4, strides=2, padding="same")),
    "group normalisation": lambda: model_of((3, 4), layers.GroupNormalization(2)),
    "layer normalisation": lambda: model_of((3, 4), layers.LayerNormalization()),
    "embedding": lambda: model_of((3,), layers.Embedding(ROWS, 2), dtype="int32"),
}


@pytest.mark.parametrize("kind", EACH_KIND)
def test_each_kind_equals_the_plain_loop(kind):
    network = EACH_KIND[kind]()
    batch, mask = batch_for(network, 4), [1, 1, 0, 1]
    expected = loop_clipped_sum(squared_loss(network), batch, mask, network.trainable_variables, 0.7)
    assert relative_error(run(BookKeepingEngine(), network, batch, mask)[0], expected) < TOLERANCE


# TensorFlow's own Jacobian of a grouped convolution differs from the plain loop, so the reference engine cannot judge it.
@pytest.mark.parametrize("kind", [kind for kind in EACH_KIND if kind != "grouped"])
def test_each_kind_equals_tensorflow_privacy(kind):
    network = EACH_KIND[kind]()
    batch, mask = batch_for(network, 4), [1, 1, 0, 1]
    expected, _ = run(ReferenceEngine(), network, batch, mask)
    assert relative_error(run(BookKeepingEngine(), network, batch, mask)[0], expected) < TOLERANCE


@pytest.mark.parametrize("gram", [False, True])
@pytest.mark.parametrize("kind", EACH_KIND)
def test_an_overflowing_gradient_counts_as_zero(kind, gram, monkeypatch):
    monkeypatch.setattr(factors, "prefers_gram", lambda *_: gram)
    network = EACH_KIND[kind]()
    inputs, shift = batch_for(network, 3)
    expected, _ = run(BookKeepingEngine(), network, (inputs, shift), [1, 0, 1])
    for far in (1e25, 3e38):
        found, loss = run(BookKeepingEngine(), network, (inputs, tf.stack([shift[0], far, shift[2]])))
        assert relative_error(found, expected) < TOLERANCE
        assert np.isfinite(loss)


@pytest.mark.parametrize("xla", [False, True])
@pytest.mark.parametrize("kind", EACH_KIND)
def test_one_program_gives_the_same(kind, xla):
    network = EACH_KIND[kind]()
    batch, mask = batch_for(network), [1, 0, 1, 1]
    compiled = tf.function(lambda *b: run(BookKeepingEngine(), network, b, mask)[0], jit_compile=xla)
    assert relative_error(compiled(*batch), run(BookKeepingEngine(), network, batch, mask)[0]) < TOLERANCE


def test_cancelling_positions_stay_within_the_clip(monkeypatch):
    monkeypatch.setattr(factors, "prefers_gram", lambda *_: True)
    network = model_of((2, 16), layers.Dense(16, use_bias=False))

    def linear_loss(apply, batch):
        return tf.reduce_sum(apply(network, batch), axis=(1, 2))

    for seed in range(12):
        random = np.random.default_rng(seed)
        first = 1e3 * random.normal(size=16)
        batch = tf.constant([[first, -first + 0.1 * random.normal(size=16)]], tf.float32)
        sums, _ = BookKeepingEngine().clipped_sum(linear_loss, batch, tf.ones([1]), network.trainable_variables, 0.1)
        assert global_norm(sums) <= 0.1 * (1 + 1e-4)


@pytest.mark.parametrize("positions, m, n", [(2, 34, 1568), (2, 1024, 1024), (4, 1152, 256)])
def test_equal_entries_that_nearly_cancel_stay_within_the_clip(positions, m, n):
    """Dot products of many equal numbers round all one way, in float32 by more than what cancelling leaves."""
    inputs = keras.Input((positions, m))
    network = keras.Model(inputs, layers.Dense(n, use_bias=False)(inputs))
    assert factors.prefers_gram(positions, m, n)

    def loss(apply, batch):
        return tf.reduce_sum(apply(network, batch[0]) * batch[1], (1, 2))

    for seed in range(40):
        random = np.random.default_rng(seed)
        left, right = random.uniform(0.5, 2) * (1 + 1e-3 * random.normal(size=positions)), random.normal(size=positions)
        right[-1] = -(left[:-1] * right[:-1]).sum() / left[-1] * (1 + 1e-3 * random.normal())
        factors_of_one = [
            tf.constant(np.repeat(of_position[None, :, None], size, 2), tf.float32)
            for of_position, size in ((left, m), (right, n))
        ]
        sums, _ = BookKeepingEngine().clipped_sum(loss, factors_of_one, tf.ones([1]), network.trainable_variables, 1.0)
        assert global_norm(sums) <= 1 + 2**-11


def test_gram_norm_has_its_least_size_where_positions_cancel_altogether():
    left, right = np.ones((1, 1, 2, 512), np.float32), np.ones((1, 1, 2, 1024), np.float32)
    right[0, 0, 1] = -1
    squared = factors.Products(tf.constant(left), tf.constant(right)).squared_norms().numpy()
    largest = 4 * 512 * 1024  # (Σ_p ‖left_p‖ ‖right_p‖)²
    assert 0.99 * 2**-23 * largest <= squared[0] <= 1e-6 * largest


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("beside", [0.0, 1.0])
@pytest.mark.parametrize("side", [0, 1])
def test_gram_norm_of_what_is_not_finite_is_not_finite(side, beside, value, compiled):
    given = [np.ones((2, 1, 3, size), np.float32) for size in (512, 1024)]
    given[side][1, 0, 0, 3] = beside
    given[side][1, 0, 1, 3] = value

    @tf.function(jit_compile=compiled)
    def squared_norms(left, right):
        return factors.Products(left, right).squared_norms()

    norms = squared_norms(*map(tf.constant, given)).numpy()
    assert np.isfinite(norms[0]) and not np.isfinite(norms[1])


def test_rows_of_a_table_that_nearly_cancel_stay_within_the_clip():
    for num_rows in (2, 1000):  # sums of rows, and the Gram rule
        inputs = keras.Input((3,), dtype="int32")
        network = keras.Model(inputs, layers.Embedding(num_rows, 8)(inputs))

        def loss(apply, batch, network=network):
            return tf.reduce_sum(apply(network, batch[0]) * batch[1], (1, 2))

        for seed in range(40):
            random = np.random.default_rng(seed)
            values = 1e4 * random.normal(size=(1, 3, 8))
            values[:, 2] = -values[:, 0] - values[:, 1] + 1e-4 * random.normal(size=8)
            batch = tf.ones([1, 3], tf.int32), tf.constant(values, tf.float32)
            sums, _ = BookKeepingEngine().clipped_sum(loss, batch, tf.ones([1]), network.trainable_variables, 1e-3)
            assert global_norm(sums) <= 1e-3 * (1 + 2**-11)


def test_a_row_that_is_looked_up_often_stays_within_the_clip():
    """Row sums are made one after the other: in float32 many equal numbers would round all one way."""
    examples, positions = 256, 784
    inputs = keras.Input((positions,), dtype="int32")
    network = keras.Model(inputs, layers.Embedding(2, 1)(inputs))
    places = tf.zeros([examples, positions], tf.int32)

    @tf.function
    def clipped_sum(weights, mask, clip):
        def loss(apply, batch):
            return tf.reduce_sum(apply(network, batch[0]) * batch[1][:, None, None], (1, 2))

        batch = places, weights
        return BookKeepingEngine().clipped_sum(loss, batch, mask, network.trainable_variables, clip)[0][0]

    for clip in np.linspace(1, 2, 9):
        others = np.full(examples, 0.8 * clip / positions)
        others[-1] = 1.0  # of far too large a gradient
        drawn = [np.ones(examples), np.arange(examples) < examples - 1]
        given = [[tf.constant(array, tf.float32) for array in (others, mask, clip)] for mask in drawn]
        with_it, without = (clipped_sum(*arguments).numpy().astype(float) for arguments in given)
        assert global_norm([with_it - without]) <= clip * (1 + 1e-4)


@pytest.mark.parametrize("xla", [False, True])
def test_a_row_that_is_not_there_is_none_of_another_example(xla):
    """XLA looks up the nearest row there is; so do the rules."""
    inputs = keras.Input((4,), dtype="int32")
    network = keras.Model(inputs, layers.Embedding(3, 2)(inputs))

    def loss(apply, batch):
        return tf.reduce_sum(apply(network, batch[0]) * batch[1], (1, 2))

    @tf.function(jit_compile=xla)
    def clipped_sum(indices, mask):
        batch = indices, tf.ones([3, 4, 2])
        return BookKeepingEngine().clipped_sum(loss, batch, mask, network.trainable_variables, 1.0)[0]

    indices = np.ones((3, 4), np.int32)
    indices[2] = -4, -5, -1, 99
    with_it, without = (clipped_sum(indices, tf.constant([1.0, 1.0, drawn])) for drawn in (1.0, 0.0))
    assert global_norm([a - b for a, b in zip(with_it, without)]) == pytest.approx(1.0, abs=1e-5)
    assert np.all(np.any(np.not_equal(with_it[0], without[0]), axis=1) == [True, False, True])


def test_the_cheaper_way_is_chosen():
    assert factors.prefers_gram(positions=1, m=64, n=64)
    assert factors.prefers_gram(positions=16, m=2048, n=256)
    assert not factors.prefers_gram(positions=196, m=16, n=32)
    assert not factors.prefers_gram(positions=1024, m=27, n=64)
