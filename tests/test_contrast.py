"""Contrast: the gain that gives samples the released energy, and what happens where nothing was released."""

import numpy as np
import pytest
import tensorflow as tf
from conftest import CLASSES, DREAMS, SHAPE, Silence, some_records, tiny_model

from tf_dp2vae.accounting import CLASS_STATISTICS, DREAM_MOMENTS, Event
from tf_dp2vae.checkpoints import Phase
from tf_dp2vae.contrast import Contrast, mean_energy
from tf_dp2vae.dreams import image_bound, statistics_basis
from tf_dp2vae.ledger import Ledger
from tf_dp2vae.mechanisms import Mechanisms
from tf_dp2vae.planning import Plan
from tf_dp2vae.records import FULL_SCALE
from tf_dp2vae.refinement import Refinement


def test_energy_is_what_the_class_statistics_tell_without_noise():
    records = some_records(30)
    answer = Mechanisms(Ledger(), Silence()).class_statistics(
        records, Event("statistics", 1e-6), statistics_basis(SHAPE), image_bound(SHAPE), (0.25, 1.0, 1.0)
    )
    with records.opened() as (images, _):
        expected = mean_energy(images.astype(np.float32) / FULL_SCALE)
    assert np.trace(answer.seconds[0]) / records.num_records == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("gain", [1.0, 1.6, 2.6])
def test_gain_that_made_the_energy_is_found_again(gain):
    model = decoding_to_strokes()
    model.contrast.energy.assign(energy_of_strokes(gain))
    model.contrast.match(model)
    assert float(model.contrast.gain) == pytest.approx(gain, rel=0.06)


@pytest.mark.parametrize("share, gain", [(0.5, 1.0), (10.0, 3.0)])
def test_gain_stays_between_one_and_three_whatever_was_released(share, gain):
    model = decoding_to_strokes()
    model.contrast.energy.assign(share * energy_of_strokes(1.0))
    model.contrast.match(model)
    assert float(model.contrast.gain) == pytest.approx(gain)


@pytest.mark.parametrize("steps, gain", [(1, 2.2), (0, 1.6)])
def test_a_refinement_that_matches_samples_brings_its_own_gain(steps, gain):
    model = decoding_to_strokes(refinement=Refinement(steps=steps, gain=2.2))
    model.contrast.energy.assign(energy_of_strokes(1.6))
    model.contrast.match(model)
    assert float(model.contrast.gain) == pytest.approx(gain, rel=0.06)


def test_nothing_released_changes_nothing():
    model = tiny_model()
    model.contrast.match(model)
    logits = tf.constant([-2.0, 0.0, 3.0])
    np.testing.assert_allclose(model.contrast(logits), tf.sigmoid(logits))


def test_release_samples_through_the_gain(trained, tmp_path):
    model, _ = trained
    gain = float(model.contrast.gain)
    model.contrast.gain.assign(2.5)
    try:
        model.export_sampler(tmp_path / "stretched")
        model.contrast.gain.assign(1.0)
        model.export_sampler(tmp_path / "plain")
    finally:
        model.contrast.gain.assign(gain)
    samplers = [tf.saved_model.load(str(tmp_path / name)) for name in ("plain", "stretched")]
    plain, stretched = (sampler.sample(5, 1, 3).numpy() for sampler in samplers)
    logits = np.log(plain) - np.log1p(-plain)
    np.testing.assert_allclose(stretched, 1 / (1 + np.exp(-2.5 * logits)), rtol=1e-3, atol=1e-5)


def test_dreams_remember_the_energy_that_was_released():
    model, records = tiny_model(pretraining=DREAMS), some_records(30)
    hardly_noised = tuple(Event(name, 1e-6) for name in (CLASS_STATISTICS, DREAM_MOMENTS))
    model.plan = Plan(hardly_noised, noise_multiplier=1.0, sampling_rate=0.5, steps=1)
    DREAMS.release(model, records)
    with records.opened() as (images, _):
        expected = mean_energy(images.astype(np.float32) / FULL_SCALE)
    assert float(model.contrast.energy) == pytest.approx(expected, rel=1e-4)


def decoding_to_strokes(**arguments):
    """Whatever the latent, four pixels have logit 2 and sixty have logit −3."""
    model = tiny_model(**arguments)
    for variable in model.decoder.trainable_variables:
        variable.assign(np.zeros(variable.shape))
    image = np.where(np.arange(64) % 16 == 5, 2.0, -3.0)
    of_label = [v for v in model.decoder.trainable_variables if v.shape == (CLASSES, 64)]
    of_label[0].assign(np.tile(image, (CLASSES, 1)))
    return model


def energy_of_strokes(gain):
    return 4 / (1 + np.exp(-2 * gain)) ** 2 + 60 / (1 + np.exp(3 * gain)) ** 2


def test_fit_sets_the_gain_from_what_it_released(monkeypatch):
    asked = []
    monkeypatch.setattr(Contrast, "match", lambda self, model: asked.append((float(self.energy), model.phase)))
    model = tiny_model(pretraining=DREAMS)
    model.fit(some_records(), batch_size=8, epochs=1, steps_per_epoch=2, verbose=0)
    assert asked == [(float(model.contrast.energy), Phase.PRIVATE)] and asked[0][0] > 0
