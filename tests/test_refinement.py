"""Refinement: samples come to have the released features, noise is trusted as far as it deserves, the judge is used."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import CLASSES, DREAMS, SHAPE, Silence, images_and_labels, tiny_model

from tf_dp2vae.accounting import FEATURE_MEANS, Event
from tf_dp2vae.baselines import StatisticsAlone
from tf_dp2vae.contrast import Contrast
from tf_dp2vae.ledger import Ledger
from tf_dp2vae.mechanisms import Mechanisms
from tf_dp2vae.moments import Moments
from tf_dp2vae.planning import Plan
from tf_dp2vae.records import Records
from tf_dp2vae.refinement import Refinement, Target
from tf_dp2vae.validation import InvalidInputError


def stroke_records(num=60, classes=CLASSES):
    """A bright bar in another place for each class, on black."""
    images = np.zeros((num, *SHAPE), np.uint8)
    labels = (np.arange(num) % CLASSES).astype(np.int32)
    for image, label in zip(images, labels):
        image[:, 2 * label : 2 * label + 2] = 230
    return Records(images, labels if classes else None, classes)


def refined(sigma, noise=None, classes=CLASSES, **arguments):
    """A fresh model that was refined on the strokes, its mean features before and after, and those of the records."""
    keras.utils.set_random_seed(1)
    model, records = tiny_model(classes), stroke_records(classes=classes)
    model.plan = Plan((Event(FEATURE_MEANS, sigma),), 1.0, 0.5, 1)
    model.mechanisms = Mechanisms(Ledger(), noise or Silence())
    before = model.decoder.get_weights()
    Refinement(**arguments).run(model, records)
    with records.opened() as (images, labels):
        wanted = mean_features(model, images.astype(np.float32) / 255, labels)
    after = model.decoder.get_weights()
    means = [wanted]
    for weights in (before, after):
        model.decoder.set_weights(weights)
        means.append(mean_features(model, *samples(model)))
    return model, means


def samples(model, num=300):
    labels = np.arange(num) % max(model.num_classes, 1)
    latent = model.latent_prior.sample(tf.constant(labels, tf.int32), tf.constant([5, 9]))
    return tf.sigmoid(model.decode(latent, tf.constant(labels, tf.int32))).numpy(), labels


def mean_features(model, images, labels):
    found = model.judge.features(tf.constant(images)).numpy()
    return np.stack([found[labels == label].mean(0) for label in np.unique(labels)])


def missed(wanted, found):
    return float(np.square(wanted - found).sum())


@pytest.mark.parametrize("classes", [CLASSES, 0])
def test_samples_come_to_have_the_released_features(classes):
    _, (wanted, before, after) = refined(1e-9, classes=classes, steps=150, anchor=0.0, learning_rate=5e-3)
    assert missed(wanted, after) < 0.3 * missed(wanted, before)


def test_anchor_holds_samples_where_they_were():
    _, (_, before, free) = refined(1e-9, steps=40, anchor=0.0)
    _, (_, _, held) = refined(1e-9, steps=40, anchor=1e6)
    assert missed(before, held) < 0.1 * missed(before, free)


def test_matching_does_not_make_samples_alike():
    """To the mean features of its own samples: a plain square would still fall where samples lose their variance."""
    keras.utils.set_random_seed(1)
    model = tiny_model()
    for variable in model.decoder.trainable_variables:
        variable.assign(2 * variable)
    images, labels = samples(model, 3000)
    model.plan = Plan((Event(FEATURE_MEANS, 1e-9),), 1.0, 0.5, 1)
    model.mechanisms = Mechanisms(Ledger(), Silence())
    own = Records(np.round(255 * images).astype(np.uint8), labels.astype(np.int32), CLASSES)
    Refinement(steps=200, anchor=0.0, learning_rate=3e-3).run(model, own)
    assert spread(samples(model, 3000)[0]) > 0.95 * spread(images)


def spread(images):
    """Variance over samples of one label after the other, summed over pixels."""
    return sum(images[label::CLASSES].var(0).sum() for label in range(CLASSES))


def test_release_that_noise_drowns_moves_nothing_and_judges_by_samples():
    class Deafening(Silence):
        def standard_normal(self, out):
            out[...] = 1
            return out

    model, (_, before, after) = refined(1e9, Deafening(), steps=40)
    assert missed(before, after) < 1e-4
    assert np.isfinite(model.judge.kernel.numpy()).all() and np.abs(model.judge.kernel.numpy()).max() < 1


def test_no_steps_leave_the_decoder_alone_and_still_teach_the_judge():
    model, (_, before, after) = refined(1e-9, steps=0)
    np.testing.assert_array_equal(before, after)
    images, labels = stroke_records()._images / np.float32(255), stroke_records()._labels
    assert (model.judge(tf.constant(images)).numpy().argmax(1) == labels).all()


def test_trust_is_the_share_of_signal():
    answer = Moments(None, np.array([[4.0, 8.0], [1.0, 0.0]]), np.zeros((1, 0, 0)), np.inf, 2.0, np.inf)
    target = Target.of(answer, np.array([4.0, 0.0]))
    np.testing.assert_allclose(target.means, [[1.0, 2.0], [1.0, 0.0]])
    np.testing.assert_allclose(target.trust, [1 / (1 + 2 * 0.25), 1 / (1 + 2 * 4.0)])
    assert target.noise_variance == pytest.approx((4 * 0.25 + 1 * 4.0) / 5)


@pytest.mark.parametrize(
    "arguments, word",
    [
        ({"share": 1.0}, "share=1.0"),
        ({"steps": -1}, "steps=-1"),
        ({"candidates": 0}, "candidates"),
        ({"anchor": -1.0}, "anchor"),
        ({"gain": 0.0}, "gain=0.0"),
        ({"temperature": 0.0}, "temperature=0.0"),
    ],
)
def test_values_out_of_bounds_are_refused(arguments, word):
    with pytest.raises(InvalidInputError, match=word):
        Refinement(**arguments)


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """A trained and refined model's exported sampler, and the model."""
    keras.utils.set_random_seed(0)
    model = tiny_model(pretraining=DREAMS, prior=None, refinement=Refinement(steps=2, candidates=3, temperature=1.3))
    model.fit(*images_and_labels(48), batch_size=12, steps_per_epoch=2, verbose=0)
    path = tmp_path_factory.mktemp("judged") / "sampler"
    model.export_sampler(path)
    return model, tf.saved_model.load(str(path))


def test_release_is_charged_last_and_within_the_budget(judged):
    model, _ = judged
    assert model.ledger.events[-1].mechanism == FEATURE_MEANS
    assert 0.99 < model.ledger.epsilon(1e-5) <= 1.0


def test_samples_are_matched_at_the_contrast_of_the_refinement(judged):
    model, _ = judged
    assert float(model.contrast.gain) == model.refinement.gain == 3.0


def test_latents_are_drawn_at_the_temperature_of_the_refinement(judged):
    prior, num = judged[0].latent_prior, 50_000
    latents = prior.sample(tf.ones([num], tf.int32), tf.constant([3, 4])).numpy()
    scale = prior.scales.numpy()[1]
    standard = np.linalg.solve(scale, (latents - prior.means.numpy()[1]).T)
    np.testing.assert_allclose(standard.mean(1), 0, atol=0.03)
    np.testing.assert_allclose(standard @ standard.T / num, 1.3**2 * np.eye(len(scale)), atol=0.05)


def test_temperature_is_set_before_the_contrast_is_matched_to_samples(monkeypatch):
    seen = []
    monkeypatch.setattr(Contrast, "match", lambda _, model: seen.append(float(model.latent_prior.temperature)))
    for refinement in (Refinement(steps=0, candidates=2, temperature=1.3), None):
        model = tiny_model(pretraining=DREAMS, prior=None, refinement=refinement)
        model.latent_prior.temperature.assign(1.7)  # of an earlier fit
        model.fit(*images_and_labels(24), batch_size=12, steps_per_epoch=1, verbose=0)
    assert seen == pytest.approx([1.3, 1.0])


def test_equal_seeds_give_equal_samples_whatever_their_number(judged):
    _, sampler = judged
    many, few = sampler.sample(150, 1, 3).numpy(), sampler.sample(70, 1, 3).numpy()
    assert many.shape == (150, *SHAPE) and np.array_equal(many[:70], few)
    assert not np.array_equal(few, sampler.sample(70, 1, 4).numpy())
    assert len(np.unique(many.reshape(150, -1), axis=0)) == 150
    assert sampler.sample(0, 1, 3).shape == (0, *SHAPE)


def test_sampler_shows_what_the_judge_prefers(judged, tmp_path):
    model, _ = judged
    kernel, bias = model.judge.kernel.numpy(), model.judge.bias.numpy()
    plain = model.contrast(model.decode(model.latent_prior.sample(tf.ones([500], tf.int32), [3, 4]), tf.ones([500])))
    # Verdicts that differ between samples of the class and favour no class on average, whatever the decoder shows.
    opinion = 20 * np.random.default_rng(0).standard_normal(kernel.shape)
    try:
        model.judge.kernel.assign(opinion)
        model.judge.bias.assign(-model.judge.features(plain).numpy().mean(0) @ opinion)
        model.export_sampler(tmp_path / "sampler")
        sampler = tf.saved_model.load(str(tmp_path / "sampler"))
        chosen = sampler.sample(500, 1, 3)
        of_chosen, of_plain = (np.exp(model.judge(shown).numpy()[:, 1]).mean() for shown in (chosen, plain))
        assert of_chosen > of_plain + 0.1
    finally:
        model.judge.kernel.assign(kernel)
        model.judge.bias.assign(bias)


def test_model_that_was_saved_judges_alike(judged, tmp_path):
    model, _ = judged
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    images = tf.constant(images_and_labels(6)[0] / np.float32(255))
    np.testing.assert_array_equal(again.judge(images), model.judge(images))
    assert again.refinement == model.refinement


def test_statistics_alone_have_no_decoder_to_refine():
    with pytest.raises(InvalidInputError, match="refinement"):
        tiny_model(pretraining=StatisticsAlone(), prior=None, refinement=Refinement())
