"""Membership inference and nearest neighbours: they find what was planted, and nothing where there is nothing."""

import numpy as np
import pytest
from scipy.stats import bernoulli

from tf_dp2vae.evaluation.membership import impossible, membership, reconstruction_losses
from tf_dp2vae.evaluation.neighbours import nearest, neighbours
from tf_dp2vae.evaluation.real import RealImages
from tf_dp2vae.validation import InvalidInputError

SHAPE = (4, 4, 1)


def images(num, seed):
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (num, *SHAPE), dtype=np.uint8), random.integers(0, 2, num)


def real(num=600):
    return RealImages("planted", images(num, 0), images(num, 1), 2)


def leaking(share):
    """Samples of which a share are training records, the rest fresh."""
    (records, labels), (fresh, others) = real().train, images(600, 2)
    kept = int(share * len(records))
    found = np.concatenate([records[:kept], fresh[kept:]]) / np.float32(255)
    return found, np.concatenate([labels[:kept], others[kept:]])


def test_losses_agree_with_the_likelihood():
    random = np.random.default_rng(3)
    x, samples = (random.random((5, 6)) > 0.5).astype(float), random.uniform(0.05, 0.95, (7, 6))
    likelihoods = np.array([[bernoulli.pmf(a, s).prod() for s in samples] for a in x])
    least, marginal = reconstruction_losses(x, samples)
    np.testing.assert_allclose(least, -np.log(likelihoods.max(1)))
    np.testing.assert_allclose(marginal, -np.log(likelihoods.mean(1)))
    # A fraction counts as the expectation of a coin.
    half, _ = reconstruction_losses(np.full((1, 6), 0.5), samples[:1])
    np.testing.assert_allclose(half, -0.5 * np.log(samples[:1] * (1 - samples[:1])).sum(1))


def test_release_that_copies_its_records_is_caught():
    found = membership(leaking(1.0), real(), 0).values["membership"]
    assert found["threshold"]["auc"] > 0.95 and found["likelihood_ratio"]["auc"] > 0.95
    assert found["threshold"]["true_positive_rates"][1] > 0.5
    assert found["records"] == found["others"] == 180


def test_fresh_samples_tell_nothing():
    found = membership(leaking(0.0), real(), 0).values["membership"]
    for attack in ("threshold", "likelihood_ratio", "control_without_the_release"):
        # Over data sets the area's deviation is 0.022 here; one 95 % interval in twenty misses.
        low, high = found[attack]["auc_interval"]
        assert low < found[attack]["auc"] < high and abs(found[attack]["auc"] - 0.5) < high - low, attack
        assert found[attack]["true_positive_intervals"][1][0] <= 0.01


def test_control_shows_a_shift_between_the_sets_that_no_release_explains():
    train, test = images(600, 0), images(600, 1)
    shifted = RealImages("shifted", train, (test[0] // 2, test[1]), 2)
    found = membership(leaking(0.0), shifted, 0).values["membership"]
    assert found["control_without_the_release"]["auc"] > 0.95


def test_membership_needs_some_records():
    assert "9 others" in impossible(real(15))
    with pytest.raises(InvalidInputError, match="needs 20"):
        membership(leaking(0.0), real(31), 0)
    assert not impossible(real(32)) and membership(leaking(0.0), real(32), 0).values["membership"]["records"] == 10


def test_copies_are_nearer_to_records_than_to_others():
    part, pairs = neighbours(leaking(0.8)[0], real(), 0)
    found = part.values["neighbours"]
    assert found["nearer_to_records"] > 0.8 and found["closest_distance"] < 1e-3
    assert pairs.shape == (2, 10, *SHAPE)
    np.testing.assert_allclose(pairs[0], pairs[1], atol=1e-6)


def test_fresh_samples_are_as_near_to_others():
    found = neighbours(leaking(0.0)[0], real(), 0)[0].values["neighbours"]
    low, high = found["nearer_to_records_interval"]
    assert low < 0.5 < high and found["closest_distance"] > 0.1


def test_nearest_agrees_with_a_loop():
    random = np.random.default_rng(4)
    points, candidates = random.random((6, 3)), random.random((9, 3))
    distances, indices = nearest(points, candidates)
    for point, distance, index in zip(points, distances, indices):
        apart = [np.sqrt(np.square(point - other).sum()) for other in candidates]
        assert index == np.argmin(apart) and distance == pytest.approx(min(apart))
