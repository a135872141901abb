"""Precision, recall, density and coverage against the definitions, written as loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tf_dp2vae.evaluation import coverage as module
from tf_dp2vae.evaluation.coverage import coverage
from tf_dp2vae.validation import InvalidInputError


def brute_force(real, samples, k):
    def distance(a, b):
        return np.sqrt(np.square(a - b).sum())

    def radius(points, i):
        return sorted(distance(points[i], other) for j, other in enumerate(points) if j != i)[k - 1]

    real_radii = [radius(real, i) for i in range(len(real))]
    sample_radii = [radius(samples, j) for j in range(len(samples))]
    inside = [[distance(s, r) < radius_ for r, radius_ in zip(real, real_radii)] for s in samples]
    inverse = [[distance(s, r) < radius_ for r in real] for s, radius_ in zip(samples, sample_radii)]
    return (
        np.mean([any(row) for row in inside]),
        np.mean([any(row[i] for row in inverse) for i in range(len(real))]),
        np.sum(inside) / (k * len(samples)),
        np.mean([any(row[i] for row in inside) for i in range(len(real))]),
    )


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(7, 25), st.integers(7, 25), st.integers(1, 5), st.floats(0, 3))
def test_agrees_with_the_definition(seed, n, m, k, shift):
    random = np.random.default_rng(seed)
    real, samples = random.standard_normal((n, 3)), random.standard_normal((m, 3)) + shift
    found = coverage(real, samples, k)
    expected = brute_force(real, samples, k)
    assert (found.precision, found.recall, found.density, found.coverage) == pytest.approx(expected)


def test_chunks_do_not_matter(monkeypatch):
    random = np.random.default_rng(0)
    real, samples = random.standard_normal((2, 60, 4))
    whole = coverage(real, samples)
    plain = module.pairwise_distances_chunked
    monkeypatch.setattr(module, "pairwise_distances_chunked", lambda a, b, **_: plain(a, b, working_memory=0.002))
    assert len(list(module._chunks(samples, real))) > 5
    assert coverage(real, samples) == whole


def test_one_mode_of_two_is_precise_but_covers_half():
    random = np.random.default_rng(1)
    real = random.standard_normal((200, 2)) + np.repeat([[0, 0], [100, 0]], 100, axis=0)
    found = coverage(real, random.standard_normal((200, 2)))
    assert found.precision > 0.9 and found.recall < 0.55 and found.coverage < 0.55
    far = coverage(real, real + 1000)
    assert (far.precision, far.recall, far.density, far.coverage) == (0, 0, 0, 0)


def test_too_few_points_are_refused():
    with pytest.raises(InvalidInputError, match="5 samples against 9 images"):
        coverage(np.zeros((9, 2)), np.zeros((5, 2)))
