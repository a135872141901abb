"""The generator that noisy statistics define: what is kept, what is shrunk, and whether samples follow the model."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import Silence, some_records, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from tf_dp2vae import pretraining
from tf_dp2vae.accounting import Event
from tf_dp2vae.dreams import DreamGenerator, components, frequency_basis, generator, shrunk_covariances
from tf_dp2vae.ledger import Ledger
from tf_dp2vae.mechanisms import Mechanisms
from tf_dp2vae.model import DP2VAE
from tf_dp2vae.moments import Classes, Moments
from tf_dp2vae.pretraining import Dreams
from tf_dp2vae.randomness import InsecureSeed
from tf_dp2vae.records import Records

D, N = 12, 20_000


def statistics(covariance, noise, seed=0, shares=(0.5, 0.3, 0.2)):
    """What `class_statistics` would answer for Gaussian classes with zero means, in the basis's own coordinates."""
    random = np.random.default_rng(seed)
    counts = N * np.array(shares)
    symmetric = random.normal(0, noise / np.sqrt(2), (D, D))
    symmetric = np.triu(symmetric, 1) + np.triu(symmetric, 1).T + np.diag(random.normal(0, noise, D))
    return Moments(counts, np.zeros((len(shares), D)), (N * covariance + symmetric)[None], 1.0, 1.0, noise)


def test_strong_components_come_first_and_no_more_than_wanted():
    values = np.zeros(D)
    values[:4] = [1.0, 0.7, 0.5, 0.4]
    rotation = np.linalg.qr(np.random.default_rng(1).standard_normal((D, D)))[0]
    answer = statistics(rotation * values @ rotation.T, 0.02 * N)
    found = components(answer, np.eye(D), at_most=D).basis
    assert 4 <= found.shape[1] < D / 2
    assert np.linalg.svd(found[:, :4].T @ rotation[:, :4])[1].min() > 0.9
    np.testing.assert_allclose(found.T @ found, np.eye(found.shape[1]), atol=1e-9)
    assert components(answer, np.eye(D), at_most=2).basis.shape == (D, 2)


def test_of_pure_noise_the_part_beyond_half_its_edge_is_kept():
    """Eigenvalues of noise follow Wigner's semicircle, of which 19.6 % lie beyond half the radius."""
    kept = [
        components(statistics(np.zeros((D, D)), 0.02 * N, seed), np.eye(D), at_most=D).basis.shape[1] / D
        for seed in range(30)
    ]
    assert abs(np.mean(kept) - (1 / 3 - np.sqrt(3) / (4 * np.pi))) < 0.03


def test_frequencies_follow_the_noisy_counts_and_empty_classes_get_the_overall_mean():
    answer = statistics(np.eye(D), 1.0, shares=(0.75, 0.25, -0.001))
    answer = Moments(
        answer.counts,
        np.vstack([np.full(D, 3.0 * N), np.full(D, 1.0 * N), np.full(D, 5.0)]),
        answer.seconds,
        1.0,
        1.0,
        1.0,
    )
    found = components(answer, np.eye(D), at_most=3)
    np.testing.assert_allclose(found.classes.frequencies, [0.75, 0.25, 0.0])
    np.testing.assert_allclose(found.means[0], 4.0, rtol=1e-3)
    np.testing.assert_allclose(found.means[2], answer.sums.sum(0) / N, rtol=1e-2)
    nobody = Moments(np.array([-3.0, -1.0]), np.ones((2, D)), answer.seconds, 1.0, 1.0, 1.0)
    np.testing.assert_allclose(components(nobody, np.eye(D), 3).classes.frequencies, [0.5, 0.5])


def some_covariances(seed=0, classes=3, d=4):
    factors = np.random.default_rng(seed).standard_normal((classes, d, 3 * d))
    return factors @ np.swapaxes(factors, 1, 2) / (3 * d)


def test_shrinkage_limits():
    covariances, frequencies = some_covariances(), np.array([0.5, 0.3, 0.2])
    shared = np.einsum("k,kij->ij", frequencies, covariances)
    own = shrunk_covariances(covariances, np.zeros(3), frequencies)
    np.testing.assert_allclose(own, covariances, rtol=1e-6, atol=1e-8)
    drowned = shrunk_covariances(covariances, np.full(3, 1e9), frequencies)
    np.testing.assert_allclose(drowned, np.broadcast_to(shared, drowned.shape), rtol=1e-6, atol=1e-8)
    mixed = shrunk_covariances(covariances, np.array([0.0, 1e9, 0.0]), frequencies)
    np.testing.assert_allclose(mixed[0], covariances[0], rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(mixed[1], shared, rtol=1e-6, atol=1e-8)


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), noise=st.floats(0, 100))
def test_shrunk_covariances_are_always_positive_definite(seed, noise):
    random = np.random.default_rng(seed)
    broken = some_covariances(seed) + noise * (lambda a: a + np.swapaxes(a, 1, 2))(random.standard_normal((3, 4, 4)))
    shrunk = shrunk_covariances(broken, np.full(3, noise), np.full(3, 1 / 3))
    np.linalg.cholesky(shrunk)
    np.testing.assert_allclose(shrunk, np.swapaxes(shrunk, 1, 2), atol=1e-8 * np.abs(shrunk).max())


def test_samples_have_the_moments_of_the_model():
    random = np.random.default_rng(0)
    basis = frequency_basis((4, 4, 1), 2)[:, :3]
    scales = np.tril(random.normal(0, 0.02, (2, 3, 3)))
    means, features = np.full((2, 16), 0.5), random.normal(0, 0.05, (2, 3))
    classes = Classes(np.array([80.0, 20.0]), np.array([0.8, 0.2]), np.ones(2))
    dreamer = DreamGenerator(means, basis, features, scales, classes, (4, 4, 1))
    images = dreamer.sample(np.ones(40_000, np.int64), random).reshape(-1, 16)
    np.testing.assert_allclose(images.mean(0), means[1] + basis @ features[1], atol=1e-3)
    np.testing.assert_allclose(np.cov(images.T), basis @ scales[1] @ scales[1].T @ basis.T, atol=3e-5)
    labels = dreamer.sample_labels(40_000, random)
    np.testing.assert_allclose(np.bincount(labels) / 40_000, [0.8, 0.2], atol=0.015)
    loud = DreamGenerator(means, basis, features, 100 * scales, classes, (4, 4, 1))
    extreme = loud.sample(np.zeros(50, np.int64), random)
    assert extreme.shape == (50, 4, 4, 1) and extreme.dtype == np.float32
    assert extreme.min() == 0 and extreme.max() == 1


def test_gaussians_are_what_counts_sums_and_second_moments_say():
    random = np.random.default_rng(4)
    rows, labels = random.normal(2, 1, (300, 3)), np.arange(300) % 3 // 2  # 200 and 100
    own = [rows[labels == label] for label in (0, 1)]
    sums, seconds = np.stack([part.sum(0) for part in own]), np.stack([part.T @ part for part in own])
    exact = Moments(np.array([200.0, 100.0]), sums, seconds, 0.0, 0.0, 6.0)
    means, covariances, noise = exact.gaussians(exact.classes())
    np.testing.assert_allclose(means, [part.mean(0) for part in own])
    np.testing.assert_allclose(covariances, [np.cov(part.T, bias=True) for part in own])
    # The noise on a diagonal entry is `second_noise`, on the others √2 less.
    np.testing.assert_allclose(noise, 6 / np.sqrt(2) / np.array([200, 100]))
    doubtful = replace(exact, count_noise=100 / 3)
    np.testing.assert_allclose(doubtful.gaussians(doubtful.classes())[0][1], own[1].mean(0) / 2)


def test_without_noise_dreams_have_the_means_and_covariances_of_the_records():
    """Both releases, noise off, through to the generator, on grey images that no bound clips."""
    random = np.random.default_rng(3)
    pattern, labels = random.normal(0, 6, (2, 64)), (np.arange(600) % 2).astype(np.int32)
    flat = 100 + 30 * labels[:, None] + random.normal(0, 1, (600, 2)) @ pattern
    records = Records(np.clip(np.round(flat), 0, 255).astype(np.uint8).reshape(-1, 8, 8, 1), labels, 2)
    door, basis, bound = Mechanisms(Ledger(), Silence()), frequency_basis((8, 8, 1), 8), 100.0
    answer = door.class_statistics(records, Event("class statistics", 1e-9), basis, bound, (1, 1, 1))
    quiet = Moments(answer.counts, answer.sums, answer.seconds, 0.0, 0.0, 1e-9)
    found = components(quiet, basis, at_most=2)

    def encode(images, labels):
        features = (images.reshape(len(images), -1) - found.means[labels]) @ found.basis
        return features, np.zeros_like(features)

    second = door.latent_moments(records, Event("dream moments", 1e-9), encode, bound, (0, 1, 1), False)
    second = Moments(None, second.sums, second.seconds, 0.0, 0.0, 1e-9)
    dreamer = generator(found, second, (8, 8, 1))
    with records.opened() as (images, _):
        pixels = images.reshape(600, -1) / 255.0
    for label in (0, 1):
        own = pixels[labels == label]
        mean = dreamer.means[label] + dreamer.basis @ dreamer.factor_means[label]
        np.testing.assert_allclose(mean, own.mean(0), atol=1e-3)
        factor = dreamer.basis @ dreamer.factor_scales[label]
        np.testing.assert_allclose(factor @ factor.T, np.cov(own.T, bias=True), atol=2e-5)


@pytest.mark.parametrize("shape, per_axis", [((8, 8, 1), 5), ((8, 12, 3), 3)])
def test_frequency_basis_is_orthonormal_and_starts_with_constants(shape, per_axis):
    basis = frequency_basis(shape, per_axis)
    assert basis.shape == (np.prod(shape), per_axis**2 * shape[2])
    np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-12)
    grey = np.ones(shape).ravel()
    np.testing.assert_allclose(basis @ (basis.T @ grey), grey, atol=1e-12)


def test_seeded_noise_makes_equal_dreams_and_other_noise_others():
    def answer(seed):
        door = Mechanisms(Ledger(), InsecureSeed(seed))
        return door.class_statistics(some_records(), Event("x", 2.0), frequency_basis((8, 8, 1), 3), 1.0, (1, 1, 1))

    np.testing.assert_array_equal(answer(1).sums, answer(1).sums)
    assert not np.array_equal(answer(1).sums, answer(2).sums)


def test_pretraining_counts_classes_looks_along_components_and_learns_dreams(monkeypatch):
    generators, losses = [], []
    endless, pretrain = pretraining._endless, DP2VAE.pretrain

    def dreaming(dreamer, seed):
        generators.append(dreamer)
        return endless(dreamer, seed)

    def loss(model):
        random = np.random.default_rng(7)
        labels = generators[0].sample_labels(256, random)
        return model.evaluate(generators[0].sample(labels, random), labels, verbose=0, return_dict=True)["loss"]

    def watched(model, *arguments):
        losses.append(loss(model))
        pretrain(model, *arguments)
        losses.append(loss(model))

    monkeypatch.setattr(pretraining, "_endless", dreaming)
    monkeypatch.setattr(DP2VAE, "pretrain", watched)
    model = tiny_model(pretraining=Dreams(steps=100, learning_rate=1e-2, sleep_steps=0))
    model.fit(some_records(47), batch_size=8, epochs=1, steps_per_epoch=1, verbose=0)
    (dreamer,) = generators
    np.testing.assert_allclose(model.latent_prior.frequencies, dreamer.classes.frequencies, rtol=1e-6)
    seen, kept = model.encoder.get_layer("projection"), dreamer.basis.shape[1]
    np.testing.assert_allclose(seen.basis.numpy()[:, :kept], dreamer.basis, atol=1e-6)
    np.testing.assert_allclose(seen.scale.numpy()[:kept], 1 / np.maximum(dreamer.spread, 0.01), rtol=1e-5)
    assert losses[1] < 0.95 * losses[0]
