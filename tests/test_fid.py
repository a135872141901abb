"""FID and KID against closed forms, scipy's matrix square root and plain loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg

from tf_dp2vae.evaluation.fid import fid, frechet_distance, kid
from tf_dp2vae.validation import InvalidInputError


def factor_of_covariance(random, dimensions):
    return random.standard_normal((dimensions, 2 * dimensions)) / np.sqrt(2 * dimensions)


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), dimensions=st.integers(1, 12))
def test_frechet_distance_agrees_with_scipy(seed, dimensions):
    random = np.random.default_rng(seed)
    means = random.standard_normal((2, dimensions))
    f, g = factor_of_covariance(random, dimensions), factor_of_covariance(random, dimensions)
    a, b = f @ f.T, g @ g.T
    root = linalg.sqrtm(a @ b).real
    expected = np.square(means[0] - means[1]).sum() + np.trace(a + b - 2 * root)
    assert frechet_distance(means[0], f, means[1], g) == pytest.approx(expected, abs=1e-6 * max(1, expected))
    assert frechet_distance(means[1], g, means[0], f) == pytest.approx(expected, abs=1e-6 * max(1, expected))


@settings(max_examples=25)
@given(st.lists(st.tuples(*[st.floats(0, 10)] * 2, *[st.floats(-5, 5)] * 2), min_size=2, max_size=8))
def test_frechet_distance_of_independent_dimensions_adds_up(rows):
    first, second, mean, other = np.array(rows).T
    expected = np.square(mean - other).sum() + np.square(first - second).sum()
    found = frechet_distance(mean, np.diag(first), other, np.diag(second))
    assert found == pytest.approx(expected, abs=1e-6)


def test_singular_covariances_of_few_images_need_no_ridge():
    random = np.random.default_rng(0)
    features = random.standard_normal((20, 64)) ** 2
    assert 0 <= fid(features, features) < 1e-6
    # Rank one against rank one: tr(Σ^½Σ′^½) is |⟨u, v⟩| for Σ = uuᵀ, Σ′ = vvᵀ.
    u, v = random.standard_normal((2, 64))
    expected = u @ u + v @ v - 2 * abs(u @ v)
    assert frechet_distance(u * 0, u[:, None], v * 0, v[:, None]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("sizes", [(6, 7), (8, 9), (40, 5), (30, 50)])
def test_fid_of_few_and_many_images_is_that_of_their_covariances(sizes):
    random = np.random.default_rng(4)
    sets = [random.standard_normal((size, 8)) @ random.standard_normal((8, 8)) + 1 for size in sizes]
    a, b = (np.cov(features, rowvar=False) for features in sets)
    difference = sets[0].mean(0) - sets[1].mean(0)
    # Eigenvalues of ΣΣ′ are not negative but for rounding, which a root turns into an imaginary part.
    cross = np.sqrt(np.maximum(linalg.eigvals(a @ b).real, 0)).sum()
    expected = difference @ difference + np.trace(a + b) - 2 * cross
    assert fid(*sets) == pytest.approx(expected, rel=1e-5)


def test_fid_takes_the_unbiased_covariance():
    first, second = np.array([[0.0], [2.0]]), np.array([[0.0], [0.0]])
    assert fid(first, second) == pytest.approx(1 + 2)


def test_fid_of_equal_distributions_shrinks_with_the_sample():
    random = np.random.default_rng(1)
    few, many = (fid(*random.standard_normal((2, size, 16))) for size in (100, 2000))
    assert 0 < many < few / 10


def test_kid_agrees_with_the_definition():
    random = np.random.default_rng(2)
    first, second = random.standard_normal((2, 7, 5))

    def kernel(a, b):
        return (a @ b / 5 + 1) ** 3

    pairs = [(i, j) for i in range(7) for j in range(7)]
    apart = [(i, j) for i, j in pairs if i != j]
    expected = np.mean([kernel(first[i], first[j]) + kernel(second[i], second[j]) for i, j in apart]) - 2 * np.mean(
        [kernel(first[i], second[j]) for i, j in pairs]
    )
    found = kid(first, second, subsets=3, subset_size=7)
    assert found.mean == pytest.approx(expected, rel=1e-9) and found.deviation == 0
    assert (found.subsets, found.subset_size) == (1, 7)


@pytest.mark.parametrize("pairs", [10**9, 1])
def test_kid_of_subsets_is_the_mean_over_them_in_both_ways(monkeypatch, pairs):
    random = np.random.default_rng(5)
    first, second = random.standard_normal((12, 5)), random.standard_normal((9, 5)) + 1
    monkeypatch.setattr("tf_dp2vae.evaluation.fid._MOST_PAIRS", pairs)
    drawn = np.random.default_rng(6)
    expected = [
        kid(first[drawn.choice(12, 4, replace=False)], second[drawn.choice(9, 4, replace=False)], 1, 4).mean
        for _ in range(20)
    ]
    found = kid(first, second, subsets=20, subset_size=4, seed=6)
    assert (found.mean, found.deviation) == pytest.approx((np.mean(expected), np.std(expected)))
    assert (found.subsets, found.subset_size) == (20, 4)


def test_kid_is_unbiased_and_tells_distributions_apart():
    random = np.random.default_rng(3)
    a, b = random.standard_normal((2, 4000, 8))
    equal, moved = kid(a, b, 200, 50), kid(a, b + 0.5, 200, 50)
    assert abs(equal.mean) < 4 * equal.deviation / np.sqrt(80)  # 80 disjoint subsets in 4,000
    assert moved.mean > 10 * abs(equal.mean)


@pytest.mark.parametrize("measure", [fid, kid])
def test_too_few_images_are_refused(measure):
    with pytest.raises(InvalidInputError, match="1 against 5"):
        measure(np.zeros((1, 3)), np.zeros((5, 3)))
