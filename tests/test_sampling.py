"""Poisson batches: who is in them, how they are laid out, and that nothing is ever cut."""

import numpy as np
import pytest
from conftest import CLASSES, SHAPE, Numbered, images_and_labels, some_records
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tf_dp2vae.randomness import InsecureSeed, SystemEntropy
from tf_dp2vae.records import NULL, Records
from tf_dp2vae.sampling import PoissonSource, in_order, unit_interval, unprotected_batches
from tf_dp2vae.units import bound_per_unit

UNLIKELY = 1e-6


@pytest.mark.parametrize("rate", [0.02, 0.5, 0.9])
def test_inclusion_is_binomial_and_independent(rate):
    num, draws = 400, 500
    source = PoissonSource(some_records(num), rate, 16, SystemEntropy(), 5)
    member = np.zeros((draws, num), bool)
    for row in member:
        row[source.draw()] = True
    assert stats.binomtest(int(member.sum()), draws * num, rate).pvalue > UNLIKELY
    spread = draws * rate * (1 - rate)
    by_record = np.square(member.sum(0) - draws * rate).sum() / spread
    assert UNLIKELY < stats.chi2.cdf(by_record, num) < 1 - UNLIKELY
    # A batch of fixed size would have no variance here; a shuffled epoch would have too little.
    by_batch = np.square(member.sum(1) - num * rate).sum() / (num * rate * (1 - rate))
    assert UNLIKELY < stats.chi2.cdf(by_batch, draws) < 1 - UNLIKELY
    consecutive = np.corrcoef(member[:-1].ravel(), member[1:].ravel())[0, 1]
    assert abs(consecutive) < 5 / np.sqrt(member[1:].size)


def test_rate_one_takes_every_record_each_time():
    source = PoissonSource(some_records(30), 1.0, 16, SystemEntropy(), 5)
    np.testing.assert_array_equal(source.draw(), np.arange(30))


@settings(max_examples=25)
@given(num=st.integers(1, 60), rate=st.floats(0.01, 1), size=st.integers(1, 40), seed=st.integers(0, 999))
def test_layout_holds_each_drawn_record_once_and_zeros_elsewhere(num, rate, size, seed):
    records = some_records(num, seed=seed)
    chosen = PoissonSource(records, rate, size, InsecureSeed(seed), 5).draw()
    batch = PoissonSource(records, rate, size, InsecureSeed(seed), 5).batch()
    chunks = batch.mask.shape[0]
    assert batch.images.shape == (chunks, size, *SHAPE) and batch.labels.shape == batch.mask.shape == (chunks, size)
    mask, images, labels = batch.mask.ravel(), batch.images.reshape(-1, *SHAPE), batch.labels.ravel()
    np.testing.assert_array_equal(mask, np.arange(mask.size) < len(chosen))
    with records.opened() as (all_images, all_labels):
        np.testing.assert_array_equal(images[: len(chosen)], all_images[chosen])
        np.testing.assert_array_equal(labels[: len(chosen)], all_labels[chosen])
    assert not images[len(chosen) :].any() and not labels[len(chosen) :].any()
    assert batch.num_chunks == -(-len(chosen) // size)


def test_null_records_are_drawn_like_any_and_contribute_nothing():
    """q·N stays what it is with all records there; each record keeps its probability q."""
    images, labels = images_and_labels(60)
    records = Records(images[:40], labels[:40], CLASSES, num_null=20)
    assert records.num_records == 60
    batch = PoissonSource(records, 1.0, 16, SystemEntropy(), 5).batch()
    assert int(np.sum(batch.mask)) == 40
    np.testing.assert_array_equal(batch.images.reshape(-1, *SHAPE)[:40], images[:40])
    source = PoissonSource(records, 0.3, 16, SystemEntropy(), 5)
    drawn = np.concatenate([source.draw() for _ in range(400)])
    for of_kind, num in ((drawn == NULL, 20), (drawn != NULL, 40)):
        assert stats.binomtest(int(of_kind.sum()), 400 * num, 0.3).pvalue > UNLIKELY
    assert drawn.max() < 40


@pytest.mark.parametrize("persons", [None, np.arange(60) // 4])
def test_nulling_a_unit_leaves_all_others_where_they_are(persons):
    """Elsewhere in the batch sums are then rounded as they were."""
    images, labels = images_and_labels(60)
    labels = np.arange(60, dtype=np.int32)
    whole = Records(images, labels, 60)
    gone = np.arange(60) == 17 if persons is None else persons == 3
    nulled = Records(images[~gone], labels[~gone], 60, int(gone.sum()), np.flatnonzero(~gone))
    if persons is not None:
        whole, nulled = (bound_per_unit(records, persons, "person", 4) for records in (whole, nulled))
    there, without = (PoissonSource(records, 0.5, 16, InsecureSeed(1), 5).batch() for records in (whole, nulled))
    assert there.num_chunks == without.num_chunks
    for before, after in zip(there, without):
        if np.shape(before)[:2] == there.mask.shape:
            others = there.mask == without.mask
            np.testing.assert_array_equal(before[others], after[others])
    moved = there.labels[there.mask != without.mask]
    assert set(moved) <= set(np.flatnonzero(gone)) and len(moved) in (0, gone.sum()) and without.mask.sum() > 16


class EveryoneAtOnce:
    """Entropy that puts all records into the batch, however small q is."""

    def generator(self):
        return self

    def random(self, num):
        return np.zeros(num)

    def standard_normal(self, out):
        out[...] = 0
        return out


def test_draw_beyond_the_layout_grows_it():
    source = PoissonSource(some_records(200), 0.001, 8, EveryoneAtOnce(), 0)
    batch = source.batch()
    assert batch.mask.sum() == 200 and batch.num_chunks == 25 and batch.mask.shape == (25, 8)


def test_usual_draws_share_one_shape():
    source = PoissonSource(some_records(300), 0.1, 8, SystemEntropy(), 5)
    assert len({source.batch().mask.shape for _ in range(50)}) == 1


def two_kinds(random, num):
    """Draws of two types and shapes."""
    return random.standard_normal((num, 2, 3)).astype(np.float32), random.integers(1, 2**30, num, np.int32)


def test_dataset_yields_fresh_batches_draws_and_noise():
    source = PoissonSource(some_records(50), 0.5, 16, SystemEntropy(), 5, two_kinds)
    first, second = list(source.dataset().take(2))
    assert first.noise.shape == [5] and len({*first.noise.numpy(), *second.noise.numpy()}) == 10
    assert not np.array_equal(first.images, second.images)
    for rows, shape, dtype, others in zip(first.draws, [(2, 3), ()], [np.float32, np.int32], second.draws, strict=True):
        assert rows.shape == (*first.mask.shape, *shape) and rows.dtype == dtype
        found = np.concatenate([batch[batch != 0] for batch in (rows.numpy(), others.numpy())])
        assert len(np.unique(found)) == found.size, "no place has another's draws, in this batch or the next"
        assert found.size == (np.sum(first.mask) + np.sum(second.mask)) * np.prod(shape, dtype=int)
    assert tuple(spec.shape.as_list() for spec in source.dataset().element_spec.draws) == ([None, 16, 2, 3], [None, 16])


@settings(max_examples=25)
@given(num=st.integers(1, 60), rate=st.floats(0.01, 1), size=st.integers(1, 40))
def test_draws_are_those_of_a_generator_of_their_own_laid_out_as_the_records(num, rate, size):
    """So is the noise: neither hangs on how many records were drawn, nor on what was drawn for them."""
    source = PoissonSource(some_records(num), rate, size, Numbered(), 5, two_kinds)
    for step in range(2):
        batch = source.batch()
        drawn, places = int(batch.mask.sum()), batch.mask.size
        assert drawn == (np.random.default_rng(3 * step + 1).random(num) < rate).sum()
        for rows, expected in zip(batch.draws, two_kinds(np.random.default_rng(3 * step + 2), drawn), strict=True):
            flat = rows.reshape(places, *rows.shape[2:])
            np.testing.assert_array_equal(flat[:drawn], expected)
            assert not flat[drawn:].any() and rows.dtype == expected.dtype
        np.testing.assert_array_equal(batch.noise, np.random.default_rng(3 * step + 3).standard_normal(5))


@pytest.mark.parametrize("missing", [1, -1])
def test_draws_with_too_few_or_too_many_rows_are_refused(missing):
    """One row more or less, in the second of two arrays."""

    def draws(random, num):
        return random.random((num, 2)), random.random((max(0, num - missing), 2))

    source = PoissonSource(some_records(40), 1.0, 8, SystemEntropy(), 1, draws)
    with pytest.raises(ValueError, match="rows for 40 places"):
        source.batch()


def test_equal_seeds_give_equal_batches_with_draws():
    batches = [PoissonSource(some_records(40), 0.5, 16, InsecureSeed(seed), 5, two_kinds).batch() for seed in (3, 3, 4)]
    first, again, other = ([batch.images, *batch.draws, batch.noise] for batch in batches)
    assert all(map(np.array_equal, first, again)) and not any(map(np.array_equal, first, other))


def test_pixels_become_floats_in_the_unit_interval():
    np.testing.assert_allclose(unit_interval(np.array([0, 51, 255], np.uint8)), [0, 0.2, 1])
    np.testing.assert_allclose(unit_interval(np.array([0.25, 1.0])), [0.25, 1])


def test_batches_in_order_are_the_records_as_they_stand():
    records = some_records(11)
    batches = list(in_order(records, 4))
    assert [len(labels) for _, labels in batches] == [4, 4, 3]
    with records.opened() as parts:
        for index, expected in enumerate(parts):
            np.testing.assert_array_equal(np.concatenate([batch[index] for batch in batches]), expected)


def test_unprotected_batches_pass_over_each_record_once_an_epoch():
    records = some_records(32)
    with records.opened() as (images, _):
        seen = np.concatenate([batch.numpy() for batch, _ in unprotected_batches(records, 8, seed=0)])
        assert sorted(map(bytes, seen)) == sorted(map(bytes, images))
