"""The baselines: the linear generator is released as it is, for the whole budget; no privacy is called no privacy."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import CLASSES, LATENT, SHAPE, images_and_labels, tiny_model
from recomputed import recomputed_epsilon

from tf_dp2vae.accounting import Privacy
from tf_dp2vae.baselines import NotPrivate, StatisticsAlone, build_linear_decoder
from tf_dp2vae.evaluation.report import guarantee
from tf_dp2vae.flags import TrainFlags
from tf_dp2vae.from_flags import make_prior, make_refinement
from tf_dp2vae.model import DP2VAE
from tf_dp2vae.networks import Projection, build_encoder
from tf_dp2vae.pretraining import Dreams
from tf_dp2vae.priors import GaussianPrior, NormalPrior
from tf_dp2vae.records import Records
from tf_dp2vae.refinement import Refinement
from tf_dp2vae.runs import RunFolder
from tf_dp2vae.statement import NOT_PRIVATE
from tf_dp2vae.validation import InvalidInputError

COMPONENTS = 4
IMAGES, LABELS = images_and_labels(240)


def linear_model(classes=CLASSES, epsilon=2.0):
    encoder = build_encoder(SHAPE, COMPONENTS, classes, width=1)
    decoder = build_linear_decoder(SHAPE, COMPONENTS, classes)
    pretraining = StatisticsAlone(components=COMPONENTS)
    model = DP2VAE(encoder, decoder, pretraining=pretraining, privacy=Privacy(epsilon, accountant="rdp"))
    model.compile("dp-adam")
    return model


class Watched(StatisticsAlone):
    """Keeps the generator that was released."""

    def release(self, model, records):
        model.dreamer = super().release(model, records)
        return model.dreamer


@pytest.fixture(scope="module")
def statistics():
    model = linear_model()
    model.pretraining = Watched(components=COMPONENTS)
    model.fit(IMAGES, LABELS, batch_size=24, verbose=0)
    return model


@pytest.fixture(scope="module")
def unprivate():
    keras.utils.set_random_seed(0)
    model = tiny_model(pretraining=NotPrivate(epochs=2), prior=None, refinement="default")
    model.fit(IMAGES, LABELS, batch_size=24, verbose=0)
    return model


def released(model, tmp_path):
    folder = RunFolder(tmp_path / "runs", "one")
    with folder.opened(len(IMAGES), None):
        folder.write_release(model)
    return folder.release


@pytest.mark.parametrize("classes", [0, CLASSES])
def test_linear_decoder_is_the_clipped_linear_map(classes):
    random = np.random.default_rng(0)
    decoder = build_linear_decoder(SHAPE, COMPONENTS, classes)
    means = random.uniform(-0.5, 1.5, (max(classes, 1), 64))
    basis = random.standard_normal((64, 3))
    decoder.get_layer("linear").assign(means, basis)
    factors, labels = (
        random.standard_normal((5, COMPONENTS)),
        np.array([2, 0, 1, 1, 2]) if classes else np.zeros(5, int),
    )
    inputs = [factors, np.eye(classes)[labels]] if classes else factors
    found = tf.sigmoid(decoder(inputs)).numpy().reshape(5, -1)
    expected = [np.clip(means[label] + basis @ factor[:3], 0, 1) for factor, label in zip(factors, labels)]
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_statistics_are_released_without_contrast(statistics):
    assert float(statistics.contrast.energy) == 0 and float(statistics.contrast.gain) == 1


def test_statistics_release_samples_of_their_generator(statistics, tmp_path):
    sampler = tf.saved_model.load(str(released(statistics, tmp_path) / "sampler"))
    random, many = np.random.default_rng(1), 4_000
    for label in range(CLASSES):
        found = np.asarray(sampler.sample(many, label, 3)).reshape(many, -1)
        expected = statistics.dreamer.sample(np.full(many, label), random).reshape(many, -1)
        spread = expected.std(0).max()
        assert spread > 0.01
        np.testing.assert_allclose(found.mean(0), expected.mean(0), atol=6 * spread / np.sqrt(many / 2))
        np.testing.assert_allclose(np.cov(found.T), np.cov(expected.T), atol=8 * spread**2 / np.sqrt(many / 2))
    frequencies = np.bincount(sampler.sample_labels(many, 5), minlength=CLASSES) / many
    np.testing.assert_allclose(frequencies, statistics.dreamer.frequencies, atol=5 * np.sqrt(0.25 / many))


def test_statistics_spend_the_whole_budget_on_two_releases(statistics):
    entry = statistics.privacy_statement().to_json()
    assert [event["mechanism"] for event in entry["events"]] == ["class statistics", "dream moments"]
    assert [event["budget_share"] for event in entry["events"]] == pytest.approx([0.10 / 0.55, 0.45 / 0.55], abs=1e-3)
    found = recomputed_epsilon(entry["events"], 1e-5)
    assert entry["end_to_end"] and 1.98 < found <= 2.001
    assert entry["epsilon"] == pytest.approx(found, rel=1e-3)


def test_statistics_without_labels_and_after_loading(tmp_path):
    model = linear_model(classes=0)
    model.fit(IMAGES, batch_size=24, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    factors = np.ones((2, COMPONENTS), np.float32)
    np.testing.assert_array_equal(again.decode(factors), model.decode(factors))
    assert again.ledger.events == model.ledger.events


def test_statistics_need_the_linear_decoder_and_bring_their_prior():
    model = tiny_model(pretraining=StatisticsAlone(), prior=None)
    with pytest.raises(InvalidInputError, match="build_linear_decoder"):
        model.fit(IMAGES, LABELS, batch_size=24, verbose=0)
    assert model.ledger.events == ()
    for pretraining in (StatisticsAlone(), NotPrivate()):
        with pytest.raises(InvalidInputError, match="sets the latent prior itself"):
            tiny_model(pretraining=pretraining, prior=GaussianPrior())


def test_without_privacy_the_encoder_sees_exact_principal_components(unprivate):
    (projection,) = [layer for layer in unprivate.encoder.layers if isinstance(layer, Projection)]
    flat = IMAGES.reshape(len(IMAGES), -1) / 255.0
    centred = flat - np.stack([flat[label == LABELS].mean(0) for label in range(CLASSES)])[LABELS]
    kept = min(60, projection.units)
    directions, deviations, _ = np.linalg.svd(centred.T, full_matrices=False)
    basis, scale = projection.basis.numpy()[:, :kept], projection.scale.numpy()[:kept]
    # The strongest are told apart; among equal ones any rotation would do.
    np.testing.assert_allclose(np.abs((basis * directions[:, :kept]).sum(0))[:5], 1, atol=1e-3)
    np.testing.assert_allclose(1 / scale, deviations[:kept] / np.sqrt(len(flat)), rtol=1e-3)


@pytest.mark.parametrize("num", [240, 300])
def test_without_privacy_refinement_is_told_the_exact_sums_of_features(unprivate, num):
    images, labels = images_and_labels(num)
    found = unprivate.pretraining.feature_means(
        unprivate, Records(images, labels, CLASSES), lambda part: unprivate.judge.features(tf.constant(part)).numpy()
    )
    each = unprivate.judge.features(tf.constant(images / np.float32(255))).numpy()
    expected = [each[labels == label].sum(0) for label in range(CLASSES)]
    np.testing.assert_allclose(found.sums, expected, atol=1e-3)
    assert unprivate.ledger.events == ()


def test_without_privacy_refinement_takes_no_budget_and_is_the_default(unprivate):
    assert unprivate.refinement == Refinement() and unprivate.shares == {}
    assert np.ptp(unprivate.judge.kernel.numpy()) > 0
    flags = TrainFlags(pretrain="not-private", candidates=2)
    assert make_refinement(flags, NotPrivate()).candidates == 2
    assert make_refinement(TrainFlags(pretrain="statistics"), StatisticsAlone()) is None


@pytest.mark.parametrize(
    "way, prior", [(Dreams, GaussianPrior), (StatisticsAlone, NormalPrior), (NotPrivate, NormalPrior)]
)
def test_what_is_the_whole_training_is_followed_by_no_release_of_latents(way, prior):
    assert type(make_prior(TrainFlags(), way())) is prior


def test_no_privacy_is_called_so_wherever_it_is_written(unprivate, tmp_path):
    release = released(unprivate, tmp_path)
    entry = json.loads((release / "privacy.json").read_text())
    numbers = [value for name, value in entry.items() if name.startswith("epsilon")]
    assert numbers == [None] * 3 and entry["end_to_end"] is False
    assert entry["not_private"] == NOT_PRIVATE and entry["events"] == [] and "given_encoder" not in entry
    assert unprivate.ledger.events == ()
    for file in ("privacy.md", "NOT-PRIVATE.md"):
        words = (release / file).read_text()
        assert "NOT PRIVATE" in words and "differentially private" not in words and "ε =" not in words
    assert guarantee(entry).rows == [("guarantee", "none")]


def test_progress_speaks_of_no_epsilon(capsys):
    tiny_model(pretraining=NotPrivate(epochs=1), prior=None).fit(IMAGES, LABELS, batch_size=24, verbose=2)
    printed = capsys.readouterr().out
    assert "[NOT PRIVATE]" in printed and "epsilon" not in printed


def test_prior_without_privacy_is_that_of_the_records(unprivate):
    mean, log_variance = (np.asarray(part) for part in unprivate.encode(tf.constant(IMAGES / 255, tf.float32), LABELS))
    for label in range(CLASSES):
        chosen = label == LABELS
        covariance = np.cov(mean[chosen].T, bias=True) + np.diag(np.exp(log_variance[chosen]).mean(0))
        np.testing.assert_allclose(unprivate.latent_prior.means[label], mean[chosen].mean(0), atol=1e-4)
        factor = np.asarray(unprivate.latent_prior.scales[label])
        np.testing.assert_allclose(factor @ factor.T, covariance, atol=2e-3)
    assert unprivate.latent_dim == LATENT
    np.testing.assert_allclose(unprivate.latent_prior.frequencies, np.full(CLASSES, 1 / 3), atol=1e-6)


def test_flags_of_a_run_without_privacy(tmp_path):
    flags = TrainFlags(pretrain="not-private", runs=tmp_path)
    assert flags.run_name("mnist") == "mnist-not-private-seed0"
    with pytest.raises(InvalidInputError, match="a shared one would bound nothing"):
        TrainFlags(pretrain="not-private", ledger=tmp_path / "ledger")
