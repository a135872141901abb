"""The judge: Fisher's discriminant against the densities it stands for, and the law of its choices."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import CLASSES, SHAPE
from scipy import stats

from tf_dp2vae.judge import Judge


def random_images(num, seed=0):
    return np.random.default_rng(seed).random((num, *SHAPE)).astype(np.float32)


@pytest.fixture
def judge():
    judge = Judge(SHAPE, CLASSES)
    judge.normalise(random_images(200))
    return judge


def test_features_are_normalised_and_bounded(judge):
    found = judge.features(tf.constant(random_images(200))).numpy()
    norms = np.linalg.norm(found, axis=1)
    assert norms.max() <= 1 + 1e-5 and 0.45 < (norms > 1 - 1e-5).mean() < 0.55
    far = judge.features(tf.constant(1e3 * random_images(5))).numpy()
    np.testing.assert_allclose(np.linalg.norm(far, axis=1), 1, rtol=1e-5)


def test_verdict_is_bayes_rule_for_gaussians_of_one_covariance(judge):
    random = np.random.default_rng(1)
    size, frequencies, noise = judge.num_features, np.array([0.2, 0.5, 0.3]), 0.01
    means = 0.3 * random.standard_normal((CLASSES, size))
    root = random.standard_normal((size, size)) / np.sqrt(size)
    covariance = root @ root.T
    judge.assign_discriminant(means, covariance, frequencies, noise)
    images = random_images(6, seed=2)
    features = judge.features(tf.constant(images)).numpy()
    softened = covariance + (0.25 * np.trace(covariance) / size + 30 * noise) * np.eye(size)
    densities = np.stack([stats.multivariate_normal(mean, softened).logpdf(features) for mean in means], 1)
    expected = densities + np.log(frequencies)
    expected -= np.log(np.exp(expected - expected.max(1, keepdims=True)).sum(1, keepdims=True)) + expected.max(
        1, keepdims=True
    )
    np.testing.assert_allclose(judge(tf.constant(images)), expected, atol=2e-3)


def test_choice_is_in_proportion_to_the_verdict(judge):
    judge.kernel.assign(np.random.default_rng(3).standard_normal(judge.kernel.shape))
    candidates, num = random_images(3, seed=4), 30_000
    chances = np.exp(judge(tf.constant(candidates)).numpy()[:, 1].astype(np.float64))
    marked = np.repeat(candidates[None], num, 0)
    uniform = tf.random.stateless_uniform([num, 3], [5, 6], minval=1e-7)
    chosen = judge.choose(tf.constant(marked), tf.ones([num], tf.int32), uniform).numpy()
    found = [(chosen == candidate).all((1, 2, 3)).sum() for candidate in candidates]
    assert sum(found) == num
    assert stats.chisquare(found, num * chances / chances.sum()).pvalue > 1e-6


def test_undecided_judge_chooses_any_candidate_alike():
    judge, num = Judge(SHAPE, CLASSES), 9_000
    marked = np.repeat(random_images(3)[None], num, 0)
    uniform = tf.random.stateless_uniform([num, 3], [7, 8], minval=1e-7)
    chosen = judge.choose(tf.constant(marked), tf.zeros([num], tf.int32), uniform).numpy()
    found = [(chosen == candidate).all((1, 2, 3)).sum() for candidate in marked[0]]
    assert stats.chisquare(found).pvalue > 1e-6


def test_config_round_trip(judge):
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(judge))
    again.set_weights(judge.get_weights())
    images = tf.constant(random_images(3))
    np.testing.assert_array_equal(again(images), judge(images))
