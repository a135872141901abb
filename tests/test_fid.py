"""FID and KID against closed forms, scipy's matrix square root and plain loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg

from tf_dp2vae.evaluation.fid import fid, frechet_distance, kid
from tf_dp2vae.validation import InvalidInputError


def covariance(random, dimensions, rank=None):
    factor = random.standard_normal((dimensions, rank or 2 * dimensions))
    return factor @ factor.T / factor.shape[1]


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), dimensions=st.integers(1, 12))
def test_frechet_distance_agrees_with_scipy(seed, dimensions):
    random = np.random.default_rng(seed)
    means = random.standard_normal((2, dimensions))
    a, b = covariance(random, dimensions), covariance(random, dimensions)
    root = linalg.sqrtm(a @ b).real
    expected = np.square(means[0] - means[1]).sum() + np.trace(a + b - 2 * root)
    assert frechet_distance(means[0], a, means[1], b) == pytest.approx(expected, abs=1e-6 * max(1, expected))
    assert frechet_distance(means[1], b, means[0], a) == pytest.approx(expected, abs=1e-6 * max(1, expected))


@settings(max_examples=25)
@given(st.lists(st.tuples(*[st.floats(0, 10)] * 2, *[st.floats(-5, 5)] * 2), min_size=2, max_size=8))
def test_frechet_distance_of_independent_dimensions_adds_up(rows):
    first, second, mean, other = np.array(rows).T
    expected = np.square(mean - other).sum() + np.square(first - second).sum()
    found = frechet_distance(mean, np.diag(first**2), other, np.diag(second**2))
    assert found == pytest.approx(expected, abs=1e-6)


def test_singular_covariances_of_few_images_need_no_ridge():
    random = np.random.default_rng(0)
    features = random.standard_normal((20, 64)) ** 2
    assert 0 <= fid(features, features) < 1e-6
    # Rank one against rank one: tr(Σ^½Σ′^½) is |⟨u, v⟩| for Σ = uuᵀ, Σ′ = vvᵀ.
    u, v = random.standard_normal((2, 64))
    expected = u @ u + v @ v - 2 * abs(u @ v)
    assert frechet_distance(u * 0, np.outer(u, u), v * 0, np.outer(v, v)) == pytest.approx(expected, abs=1e-5)


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
    assert found.mean == pytest.approx(expected, rel=1e-9) and found.deviation < 1e-9 and found.subset_size == 7


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
