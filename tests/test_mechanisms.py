"""What each mechanism guarantees: bounded contributions, noise of the stated size, charged before it looks."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import (
    CLASSES,
    SHAPE,
    Silence,
    images_and_labels,
    loop_clipped_sum,
    randomised,
    relative_error,
    smoothed,
    some_records,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers
from scipy import stats

from tf_dp2vae import mechanisms
from tf_dp2vae.accounting import Event
from tf_dp2vae.dreams import frequency_basis
from tf_dp2vae.factors import MOST_AT_ONCE, ROUNDING
from tf_dp2vae.gradients import BookKeepingEngine
from tf_dp2vae.ledger import Ledger
from tf_dp2vae.mechanisms import Mechanisms
from tf_dp2vae.randomness import GRID, SystemEntropy, on_grid, standard_normals
from tf_dp2vae.records import Records
from tf_dp2vae.sampling import PoissonBatch, PoissonSource, no_draws

EVENT = Event("class statistics", 2.0)
EXACT = Event("class statistics", 1e-9)
"""With `Silence` it shows the truth: answers are rounded to a grid as fine as the noise is small."""
UNLIKELY = 1e-6
PIXELS = int(np.prod(SHAPE))


# --- the gradient sum ---


class ShiftLoss:
    """Squared outputs of a small dense network, without latent draws."""

    def __init__(self):
        inputs = keras.Input(SHAPE)
        hidden = layers.Dense(30, activation="tanh")(layers.Flatten()(inputs))
        self.network = randomised(keras.Model(inputs, layers.Dense(30, use_bias=False)(hidden)))

    private_draws = staticmethod(no_draws)

    def prepare(self, images, labels, draws):
        return images

    def losses(self, apply, batch):
        return tf.reduce_sum(tf.square(apply(self.network, batch) - 1.0), axis=1)


def poisson_batch(num, loss, size=4, chunks=3, random=None):
    """The first `num` of some records, with fresh noise."""
    images, labels = images_and_labels(chunks * size)
    mask = (np.arange(chunks * size) < num).astype(np.uint8)
    images = images * mask[:, None, None, None]
    layout = chunks, size
    noise = standard_normals(random or SystemEntropy().generator(), loss.network.count_params())
    arrays = images.reshape(*layout, *SHAPE), labels.reshape(layout), mask.reshape(layout), np.int32(-(-num // size))
    return tf.nest.map_structure(tf.constant, PoissonBatch(*arrays, (), noise))


def gradient_sum(batch, noise_multiplier, loss, clip=0.5):
    door = Mechanisms(Ledger(), SystemEntropy())
    variables = loss.network.trainable_variables
    return door.gradient_sum(BookKeepingEngine(), loss, batch, variables, clip, noise_multiplier)


def test_chunks_add_up_to_one_clipped_sum():
    loss = ShiftLoss()
    images, _ = images_and_labels(12)
    sums, mean_loss = gradient_sum(poisson_batch(9, loss), 0.0, loss)
    pixels = tf.constant(images[:9], tf.float32) / 255
    variables = loss.network.trainable_variables
    expected, total = BookKeepingEngine().clipped_sum(loss.losses, pixels, tf.ones(9), variables, 0.5)
    assert relative_error(sums, expected) < 1e-5
    np.testing.assert_allclose(mean_loss, total / 9, rtol=1e-5)


def test_rounding_of_a_sum_does_not_grow_with_its_chunks():
    """As many equal numbers as here round all one way, if each is added to a float32 sum of those before."""
    inputs = keras.Input((1,))
    loss = ShiftLoss()
    loss.network = keras.Model(inputs, layers.Dense(1, use_bias=False)(inputs))
    loss.prepare = lambda images, labels, draws: tf.reshape(images, [1, 1])
    loss.losses = lambda apply, batch: tf.reduce_sum(apply(loss.network, batch), axis=1)
    num, pixel = 3_000, 200
    pixels, ones = np.full((num, 1, 1, 1, 1), pixel, np.uint8), np.ones((num, 1), np.uint8)
    arrays = pixels, np.zeros((num, 1), np.int32), ones, np.int32(num), (), np.zeros(1)
    batch = tf.nest.map_structure(tf.constant, PoissonBatch(*arrays))
    (total,), _ = tf.function(lambda: gradient_sum(batch, 0.0, loss, clip=1.0))()
    assert total.numpy().item() == pytest.approx(num * pixel / 255, rel=2e-7)


def test_chunks_whose_sums_would_round_too_much_away_are_refused():
    loss = ShiftLoss()
    with pytest.raises(ValueError, match="1025 examples"):
        gradient_sum(poisson_batch(5, loss, size=MOST_AT_ONCE + 1, chunks=1), 0.0, loss)


def test_noise_on_a_sum_has_mean_and_deviation_and_no_correlations():
    loss, clip, sigma = ShiftLoss(), 0.5, 3.0
    truth, _ = gradient_sum(poisson_batch(9, loss), 0.0, loss, clip)
    noises = [
        [(a - b).numpy().ravel() for a, b in zip(gradient_sum(poisson_batch(9, loss), sigma, loss, clip)[0], truth)]
        for _ in range(2)
    ]
    for noise in noises[0]:
        if noise.size > 100:
            assert stats.kstest(smoothed(noise / (sigma * clip)), "norm").pvalue > UNLIKELY
    first, last = noises[0][0], noises[0][-1]
    assert abs(np.corrcoef(first[: last.size], last)[0, 1]) < 5 / np.sqrt(last.size)
    for a, b in zip(*noises):
        assert a.size < 100 or abs(np.corrcoef(a, b)[0, 1]) < 5 / np.sqrt(a.size)


def test_empty_batch_is_pure_noise():
    loss = ShiftLoss()
    noised, mean_loss = gradient_sum(poisson_batch(0, loss), 2.0, loss)
    values = np.concatenate([total.numpy().ravel() for total in noised])
    assert stats.kstest(smoothed(values), "norm").pvalue > UNLIKELY
    assert mean_loss == 0


def test_half_precision_changes_nothing_about_sums_and_noise():
    """The global policy says halves; sums, noise and answers stay what they are, bit for bit: no float16 numbers."""
    loss, answers = ShiftLoss(), []
    batch = poisson_batch(9, loss)
    for policy in ("float32", "mixed_float16"):
        keras.config.set_dtype_policy(policy)
        try:
            answers.append(gradient_sum(batch, 1e-3, loss)[0])
        finally:
            keras.config.set_dtype_policy("float32")
    for exact, half in zip(*answers):
        assert exact.dtype == half.dtype == tf.float32
        np.testing.assert_array_equal(exact, half)
        assert np.any(half.numpy() != half.numpy().astype(np.float16)) or half.shape.num_elements() < 100


def test_noise_is_the_batch_s_own_in_float64_and_no_seed_repeats_it():
    """Each number of the answer is the sum plus σC times its own draw, rounded to the grid."""
    loss, clip, sigma = ShiftLoss(), 0.5, 3.0
    batches = [poisson_batch(5, loss, random=np.random.default_rng(seed)) for seed in (1, 1, 2)]
    answers = []
    for batch in batches:
        keras.utils.set_random_seed(7)
        noised, _ = gradient_sum(batch, sigma, loss, clip)
        answers.append(np.concatenate([total.numpy().ravel() for total in noised]))
    truth = np.concatenate([total.numpy().ravel() for total in gradient_sum(batches[0], 0.0, loss, clip)[0]])
    deviation = np.float64(np.float32(sigma * clip * (1 + ROUNDING)))
    exact = truth.astype(np.float64) + deviation * batches[0].noise.numpy()
    np.testing.assert_array_equal(answers[0], on_grid(exact, deviation).astype(np.float32))
    assert 0 < np.abs(answers[0] - exact).max() <= GRID * deviation / 2
    assert np.array_equal(answers[0], answers[1])
    assert np.isclose(answers[0] - truth, answers[2] - truth).mean() < 0.1, "as often as two draws share a grid point"


@pytest.mark.parametrize("size", [0, 1, 2849, 2851])
def test_noise_of_another_size_is_refused(size):
    loss = ShiftLoss()
    batch = poisson_batch(5, loss)._replace(noise=tf.zeros([size], tf.float64))
    with pytest.raises(ValueError, match="2850"):
        gradient_sum(batch, 1.0, loss)


class DrawnLoss(ShiftLoss):
    """Squared outputs for images to which what was drawn for them is added."""

    def private_draws(self, random, num):
        return random.standard_normal((num, *SHAPE)).astype(np.float32), random.integers(1, 9, num, np.int32)

    def prepare(self, images, labels, draws):
        shift, times = draws
        return images + tf.cast(times, tf.float32)[:, None, None, None] * shift


def drawn_batch(loss, num=11, size=4, entropy=None):
    """All of `num` records, in chunks of `size`, from the source itself."""
    source = PoissonSource(
        some_records(num), 1.0, size, entropy or SystemEntropy(), loss.network.count_params(), loss.private_draws
    )
    return tf.nest.map_structure(tf.constant, source.batch())


def test_gradient_sum_is_that_of_a_plain_loop_with_the_draws_handed_in():
    """Each record, in whatever chunk, gets the draws of its own place."""
    loss, num = DrawnLoss(), 11
    batch = drawn_batch(loss, num)
    shifts, times = (rows.numpy().reshape(-1, *rows.shape[2:])[:num] for rows in batch.draws)
    assert len(np.unique(shifts)) == shifts.size, "each place has draws of its own"
    images, _ = images_and_labels(num)
    moved = tf.constant(images / 255 + times[:, None, None, None] * shifts, tf.float32)
    variables = loss.network.trainable_variables
    sums, _ = gradient_sum(batch, 0.0, loss)
    assert relative_error(sums, loop_clipped_sum(loss.losses, moved, np.ones(num), variables, 0.5)) < 1e-5
    elsewhere = tf.nest.map_structure(lambda rows: tf.roll(rows, 1, axis=1), batch.draws)
    others, _ = gradient_sum(batch._replace(draws=elsewhere), 0.0, loss)
    assert relative_error(others, sums) > 1e-2, "or the loop would not tell one place's draws from another's"


def test_draws_of_places_without_a_record_change_nothing():
    loss = DrawnLoss()
    batch = drawn_batch(loss, 6)
    filled = tuple(
        tf.where(tf.reshape(batch.mask, [*batch.mask.shape] + [1] * (rows.shape.rank - 2)) > 0, rows, 7)
        for rows in batch.draws
    )
    for plain, other in zip(
        gradient_sum(batch, 0.0, loss)[0], gradient_sum(batch._replace(draws=filled), 0.0, loss)[0]
    ):
        np.testing.assert_array_equal(plain, other)


@pytest.mark.parametrize(
    "change",
    {
        "none": lambda shifts, times: (),
        "one too few": lambda shifts, times: (shifts,),
        "one too many": lambda shifts, times: (shifts, times, times),
        "one for all places": lambda shifts, times: (shifts[:, :1], times),
        "one for all pixels": lambda shifts, times: (shifts[..., :1, :], times),
        "another type": lambda shifts, times: (shifts, tf.cast(times, tf.float32)),
        "another order": lambda shifts, times: (times, shifts),
    }.items(),
    ids=lambda change: change[0],
)
def test_draws_that_are_not_the_losss_are_refused(change):
    """Broadcasting would take most of them without a word."""
    loss = DrawnLoss()
    batch = drawn_batch(loss)
    with pytest.raises(ValueError, match="draws"):
        gradient_sum(batch._replace(draws=change[1](*batch.draws)), 1.0, loss)


# --- moments: what one record can do ---


class Latents:
    """An encoder that looks its answer up by the first pixel, so that a test chooses each record's latent."""

    def __init__(self, means, variances):
        self.means, self.variances = np.asarray(means), np.asarray(variances)

    def __call__(self, images, labels):
        row = np.round(images[:, 0, 0, 0] * 255).astype(int)
        return self.means[row], self.variances[row]


def numbered(num, labels):
    images = np.zeros((num, *SHAPE), np.uint8)
    images[:, 0, 0, 0] = np.arange(num)
    return Records(images, np.asarray(labels, np.int32), CLASSES)


def without(records, index):
    """The data set with that record's contribution taken away: what nulling it leaves in every sum."""
    with records.opened() as (images, labels):
        return Records(np.delete(images, index, 0), np.delete(labels, index), records.num_classes)


def contribution(answer, bound, weights):
    """The released vector in units of the contribution: (a·counts, b·sums/R, c·vech(seconds)/R²)."""
    a, b, c = weights
    rows, columns = np.triu_indices(answer.seconds.shape[-1])
    half = answer.seconds[:, rows, columns] * np.where(rows == columns, 1, np.sqrt(2))
    counts = np.zeros(0) if answer.counts is None else a * answer.counts
    return [counts, (b / bound * answer.sums).ravel(), (c / bound**2 * half).ravel()]


def distance(answer, other, bound, weights):
    pairs = zip(contribution(answer, bound, weights), contribution(other, bound, weights))
    return np.linalg.norm(np.concatenate([a - b for a, b in pairs]))


def statistics_of(records, bound, weights, basis, entropy=None):
    event = EVENT if entropy else EXACT
    return Mechanisms(Ledger(), entropy or Silence()).class_statistics(records, event, basis, bound, weights)


def latents_of(records, bound, weights, encode, shared=False, entropy=None):
    door = Mechanisms(Ledger(), entropy or Silence())
    return door.latent_moments(records, EVENT if entropy else EXACT, encode, bound, weights, shared)


def features_of(records, features, entropy=None):
    door = Mechanisms(Ledger(), entropy or Silence())
    return door.feature_means(records, EVENT if entropy else EXACT, features)


@pytest.mark.parametrize("held", [5, 4, 1])
def test_null_records_change_neither_number_nor_shape_of_calls(monkeypatch, held):
    """What is done must not follow the number of records that are held, whatever of it could be seen."""
    monkeypatch.setattr(mechanisms, "_CHUNK", 2)
    images, labels = images_and_labels(held, classes=3)
    shapes = []

    def features(part):
        shapes.append(part.shape)
        return part.reshape(len(part), -1)[:, :3] + 1.0

    found = features_of(Records(images, labels, 3, num_null=5 - held), features)
    assert shapes == [(2, *SHAPE)] * 3
    rows = images.reshape(held, -1)[:, :3] / 255 + 1.0
    clipped = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1)
    for label in range(3):
        np.testing.assert_allclose(found.sums[label], clipped[labels == label].sum(0), rtol=1e-5)


WEIGHTS = st.tuples(st.just(0.0) | st.floats(0.01, 2), st.floats(0.1, 2), st.floats(0.1, 2))


@settings(max_examples=40)
@given(
    seed=st.integers(0, 99),
    index=st.integers(0, 11),
    bound=st.floats(0.01, 20),
    weights=WEIGHTS,
    size=st.integers(1, 8),
)
def test_class_statistics_move_by_at_most_the_sensitivity(seed, index, bound, weights, size):
    records, basis = some_records(12, seed=seed), frequency_basis(SHAPE, size)
    answers = [statistics_of(data, bound, weights, basis) for data in (records, without(records, index))]
    assert distance(*answers, bound, weights) <= np.hypot(np.hypot(*weights[:2]), weights[2]) * (1 + 1e-5)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    index=st.integers(0, 5),
    bound=st.floats(0.1, 10),
    weights=WEIGHTS,
    size=st.sampled_from([0.01, 1.0, 100.0]),
    spread=st.sampled_from([0.0, 1.0, 1e4]),
    shared=st.booleans(),
)
def test_latent_moments_move_by_at_most_the_sensitivity(seed, index, bound, weights, size, spread, shared):
    random = np.random.default_rng(seed)
    encode = Latents(size * random.standard_normal((6, 3)), spread * random.random((6, 3)))
    records = numbered(6, random.integers(0, CLASSES, 6))
    answers = [latents_of(data, bound, weights, encode, shared) for data in (records, without(records, index))]
    assert distance(*answers, bound, weights) <= np.linalg.norm(weights) * (1 + 1e-5)


class Features(Latents):
    """Given features, by the number of the record."""

    def __init__(self, features):
        super().__init__(features, features)

    def __call__(self, images):
        return super().__call__(images, None)[0]


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), index=st.integers(0, 5), size=st.sampled_from([0.01, 1.0, 100.0]))
def test_feature_sums_move_by_at_most_one(seed, index, size):
    random = np.random.default_rng(seed)
    features = Features(size * random.standard_normal((6, 3)))
    records = numbered(6, random.integers(0, CLASSES, 6))
    answers = [features_of(data, features) for data in (records, without(records, index))]
    assert np.linalg.norm(answers[0].sums - answers[1].sums) <= 1 + 1e-6
    if size == 100.0:
        assert np.linalg.norm(answers[0].sums - answers[1].sums) > 0.999


def test_feature_sums_below_the_bound_are_the_plain_sums_and_nothing_else():
    features = Features([[0.1, 0.2], [0.3, -0.4], [np.nan, 0.1]])
    answer = features_of(numbered(3, [0, 2, 2]), features)
    np.testing.assert_allclose(answer.sums, [[0.1, 0.2], [0, 0], [0.3, -0.4]], rtol=1e-6)
    assert answer.counts is None and answer.seconds.size == 0


def test_noise_of_feature_sums_has_the_stated_deviation():
    features = Features(np.zeros((3, 400)))
    sums = [features_of(numbered(3, [0, 1, 2]), features, SystemEntropy()).sums for _ in range(20)]
    assert stats.kstest(np.ravel(sums) / EVENT.noise_multiplier, "norm").pvalue > UNLIKELY


def test_worst_case_records_reach_the_sensitivity():
    """The bound is not a loose one: noise that is calibrated to it is not more than needed."""
    weights, bound = (0.5, 1.0, 2.0), 1.5
    images = np.full((3, *SHAPE), 255, np.uint8)
    white = Records(images, np.arange(3, dtype=np.int32), CLASSES)
    answers = [statistics_of(data, bound, weights, frequency_basis(SHAPE, 8)) for data in (white, without(white, 0))]
    assert distance(*answers, bound, weights) > 0.9999 * np.linalg.norm(weights)
    encode = Latents([[30.0, 40.0]] * 2, np.zeros((2, 2)))
    pair = numbered(2, [0, 1])
    answers = [latents_of(data, bound, weights, encode) for data in (pair, without(pair, 1))]
    assert distance(*answers, bound, weights) > 0.9999 * np.linalg.norm(weights)


@pytest.mark.parametrize("where", ["mean", "variance"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_latents_count_as_a_null_record(where, value):
    means, variances = np.ones((4, 2)), np.ones((4, 2))
    (means if where == "mean" else variances)[2, 1] = value
    records = numbered(4, [0, 1, 2, 2])
    answers = [latents_of(data, 3.0, (1, 1, 1), Latents(means, variances)) for data in (records, without(records, 2))]
    assert distance(*answers, 3.0, (1, 1, 1)) == 0


def test_moments_below_the_bounds_are_the_plain_sums():
    means, variances = np.array([[0.1, 0.2], [0.3, -0.4], [0.5, 0.1]]), np.full((3, 2), 0.25)
    answer = latents_of(numbered(3, [0, 2, 2]), 5.0, (1, 1, 1), Latents(means, variances))
    np.testing.assert_allclose(answer.counts, [1, 0, 2])
    np.testing.assert_allclose(answer.sums, [means[0], [0, 0], means[1] + means[2]])
    second = means[1:].T @ means[1:] + 0.5 * np.eye(2)
    np.testing.assert_allclose(answer.seconds[[1, 2]], [np.zeros((2, 2)), second])


# --- moments: noise ---


@pytest.mark.parametrize("weights", [(0.5, 1.0, 2.0), (0.0, 0.5, 1.0)])
def test_noise_of_moments_is_isotropic_in_units_of_the_contribution(weights):
    records, bound, encode = numbered(3, [0, 1, 2]), 1.5, Latents(np.zeros((3, 12)), np.zeros((3, 12)))
    truth = contribution(latents_of(records, bound, weights, encode), bound, weights)
    answers = [latents_of(records, bound, weights, encode, entropy=SystemEntropy()) for _ in range(20)]
    noises = [[a - b for a, b in zip(contribution(answer, bound, weights), truth)] for answer in answers]
    deviation = EVENT.noise_multiplier * np.linalg.norm(weights)
    for block in range(3):
        values = np.concatenate([noise[block] for noise in noises]) / deviation
        assert values.size == 0 or stats.kstest(values, "norm").pvalue > UNLIKELY
    assert (answers[0].counts is None) == (weights[0] == 0)
    assert not np.allclose(answers[0].sums, answers[1].sums)
    for answer in answers:
        np.testing.assert_array_equal(answer.seconds, np.swapaxes(answer.seconds, 1, 2))
    diagonals = np.concatenate([np.diagonal(a.seconds - 0, axis1=1, axis2=2).ravel() for a in answers])
    np.testing.assert_allclose(diagonals.std(), answers[0].second_noise, rtol=0.1)


@pytest.mark.parametrize("shared", [True, False])
def test_every_number_of_a_release_lies_on_its_grid(shared):
    """Counts, sums, diagonals and the rest of second moments: what is finer than noise could tell neighbours apart."""
    records, deviation, bound, weights = some_records(30), 2.0, 3.0, (0.5, 1.0, 2.0)
    latent = lambda images, labels: (images.reshape(len(images), -1)[:, :4], np.full((len(images), 4), 0.3))  # noqa: E731
    door = Mechanisms(Ledger(), SystemEntropy())
    moments = door.latent_moments(records, Event("latent", deviation), latent, bound, weights, shared)
    unit = deviation * np.linalg.norm(weights)
    diagonal = np.eye(4, dtype=bool)
    answers = {
        unit / weights[0]: moments.counts,
        unit * bound / weights[1]: moments.sums,
        unit * bound**2 / weights[2]: moments.seconds[:, diagonal],
        unit * bound**2 / weights[2] / np.sqrt(2): moments.seconds[:, ~diagonal],
    }
    features = door.feature_means(records, Event("features", deviation), lambda images: images.reshape(len(images), -1))
    for stddev, numbers in [*answers.items(), (deviation, features.sums)]:
        step = 2.0 ** np.floor(np.log2(GRID * stddev))
        assert numbers.any() and not np.mod(numbers, step).any()


def test_noise_ignores_the_seed_of_the_user():
    answers = []
    for _ in range(2):
        keras.utils.set_random_seed(1)
        answers.append(statistics_of(some_records(), 1.0, (1, 1, 1), frequency_basis(SHAPE, 2), SystemEntropy()))
    assert not np.allclose(answers[0].sums, answers[1].sums)


# --- moments: order and edge cases ---


class Watched(Records):
    """Records that remember what the ledger held when they were opened."""

    def __init__(self, ledger):
        super().__init__(*images_and_labels(4), CLASSES)
        self.ledger, self.seen = ledger, []

    def opened(self):
        self.seen.append(self.ledger.events)
        return super().opened()


def test_charged_before_records_are_read():
    ledger = Ledger()
    records, door = Watched(ledger), Mechanisms(ledger, SystemEntropy())
    door.class_statistics(records, EVENT, frequency_basis(SHAPE, 2), 1.0, (1, 1, 1))
    latent = Event("latent moments", 3.0)
    door.latent_moments(records, latent, Latents(np.zeros((256, 2)), np.zeros((256, 2))), 1.0, (1, 1, 1), True)
    assert records.seen == [(EVENT,), (EVENT, latent)]
    assert ledger.events == (EVENT, latent)


def test_empty_class_and_unlabelled_records_are_no_error():
    images, _ = images_and_labels(5)
    one_class = statistics_of(Records(images, np.ones(5, np.int32), 3), 9.0, (1, 1, 1), np.eye(PIXELS)[:, :3])
    np.testing.assert_array_equal(one_class.counts, [0, 5, 0])
    unlabelled = statistics_of(Records(images, None, 0), 9.0, (1, 1, 1), np.eye(PIXELS)[:, :3])
    np.testing.assert_array_equal(unlabelled.counts, [5])
    np.testing.assert_allclose(unlabelled.sums[0], one_class.sums[1])


def test_basis_that_lengthens_projections_is_refused():
    with pytest.raises(ValueError, match="orthonormal"):
        statistics_of(some_records(), 1.0, (1, 1, 1), 1.1 * np.eye(PIXELS)[:, :3])
