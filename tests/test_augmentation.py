"""Augmented copies: what they are, and that their gradients are averaged before the one clip of their record."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import CLASSES, SHAPE, global_norm, images_and_labels, randomised, relative_error, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tf_dp2vae.accounting import Privacy
from tf_dp2vae.augmentation import Shifts
from tf_dp2vae.gradients import BookKeepingEngine, ReferenceEngine, VectorizedMapEngine, plain_apply
from tf_dp2vae.model import DP2VAE
from tf_dp2vae.pretraining import NoPretraining
from tf_dp2vae.randomness import SystemEntropy
from tf_dp2vae.validation import InvalidInputError

ENGINES = [BookKeepingEngine, VectorizedMapEngine, ReferenceEngine]


def fresh():
    return SystemEntropy().generator()


def moved(image, down, right):
    """The image moved by that many pixels, zeros coming in: pixel by pixel."""
    result = np.zeros_like(image)
    for row, column in np.ndindex(*image.shape[:2]):
        if 0 <= row - down < image.shape[0] and 0 <= column - right < image.shape[1]:
            result[row, column] = image[row - down, column - right]
    return result


def moves_of(image, copy, pixels):
    """Every (down, right) within `pixels` that makes the copy of the image."""
    within = range(-pixels, pixels + 1)
    return [(down, right) for down in within for right in within if np.array_equal(moved(image, down, right), copy)]


@settings(max_examples=25)
@given(
    examples=st.integers(1, 3),
    num=st.integers(1, 3),
    pixels=st.integers(1, 3),
    shape=st.tuples(st.integers(4, 6), st.integers(4, 6), st.sampled_from([1, 3])),
    seed=st.integers(0, 999),
)
def test_each_copy_is_its_own_record_moved_by_at_most_the_bound(examples, num, pixels, shape, seed):
    images = np.random.default_rng(seed).uniform(0.1, 1, (examples, *shape)).astype(np.float32)
    offsets = Shifts(pixels).offsets(fresh(), examples, num)
    copies = Shifts(pixels).copies(tf.constant(images), tf.constant(offsets)).numpy()
    assert copies.shape == (examples, num, *shape)
    for image, own, its in zip(images, copies, offsets):
        for copy, (above, left) in zip(own, its):
            assert moves_of(image, copy, pixels) == [(pixels - above, pixels - left)]


@pytest.mark.parametrize("pixels", [1, 2])
def test_moves_are_uniform_and_each_copy_has_its_own(pixels):
    """All pairs are as likely, also given the copy before, and the record before."""
    side = 2 * pixels + 1
    offsets = Shifts(pixels).offsets(fresh(), 4000, 3)
    assert offsets.shape == (4000, 3, 2) and offsets.dtype == np.int32 and set(offsets.ravel()) == set(range(side))
    pairs = side * offsets[..., 0] + offsets[..., 1]
    assert stats.chisquare(np.bincount(pairs.ravel(), minlength=side**2)).pvalue > 1e-6
    for before, after in [(pairs[:, :-1], pairs[:, 1:]), (pairs[:-1], pairs[1:])]:
        together = np.bincount(side**2 * before.ravel() + after.ravel(), minlength=side**4)
        assert stats.chisquare(together).pvalue > 1e-6


def test_moves_are_what_the_generator_gave():
    equal, other = ([np.random.default_rng(seed) for seed in seeds] for seeds in [(1, 1), (1, 2)])
    np.testing.assert_array_equal(*(Shifts(2).offsets(random, 9, 4) for random in equal))
    assert not np.array_equal(*(Shifts(2).offsets(random, 9, 4) for random in other))


def augmented(draws):
    model = tiny_model(augmentation=Shifts(2), draws=draws, pretraining=NoPretraining())
    for network in (model.encoder, model.decoder):
        randomised(network)
    return model


def loop_over_copies(model, batch, mask, variables, clip):
    """Σ clip_C(mean over copies of the gradient), one tape a copy."""
    images, labels, noise = batch
    sums = [np.zeros(variable.shape) for variable in variables]
    for example in np.flatnonzero(mask):
        mean = [np.zeros(variable.shape) for variable in variables]
        for copy in range(images.shape[1]):
            with tf.GradientTape() as tape:
                parts = model.elbo(
                    plain_apply, images[example, copy][None], labels[example][None], noise[example, copy][None, None]
                )
                loss = parts.reconstruction[0] + parts.kl[0]
            values = [variable.value for variable in variables]
            gradients = tape.gradient(loss, values, unconnected_gradients=tf.UnconnectedGradients.ZERO)
            mean = [total + np.asarray(new, np.float64) / images.shape[1] for total, new in zip(mean, gradients)]
        scale = min(1.0, clip / global_norm(mean))
        sums = [total + scale * part for total, part in zip(sums, mean)]
    return sums


@pytest.mark.parametrize("engine", ENGINES)
@settings(max_examples=4)
@given(draws=st.integers(1, 3), whole=st.booleans(), clip=st.sampled_from([1.0, 1e4]))
def test_copies_are_averaged_before_the_one_clip(engine, draws, whole, clip):
    model, mask = augmented(draws), [1, 0, 1]
    variables = model.trainable_variables if whole else model.decoder.trainable_variables
    images, labels = images_and_labels(3)
    drawn = tuple(map(tf.constant, model.private_draws(fresh(), 3)))
    batch = model.prepare(tf.constant(images, tf.float32) / 255, tf.constant(labels), drawn)
    assert batch[0].shape == (3, draws, *SHAPE)
    sums, losses = engine().clipped_sum(model.losses, batch, tf.constant(mask, tf.float32), variables, clip)
    assert relative_error(sums, loop_over_copies(model, batch, mask, variables, clip)) < 1e-5
    assert global_norm(sums) <= 2 * clip * (1 + 1e-5)
    np.testing.assert_allclose(losses, tf.reduce_sum(model.losses(plain_apply, batch) * mask), rtol=1e-5)


def test_latent_draws_are_those_without_augmentation():
    """Moves are drawn after them."""
    model, plain_model = augmented(2), tiny_model(draws=2)
    images, labels = (tf.constant(part) for part in images_and_labels(3))
    pixels = tf.cast(images, tf.float32) / 255
    (plain_noise,), (noise, offsets) = (m.private_draws(np.random.default_rng(3), 3) for m in (plain_model, model))
    np.testing.assert_array_equal(noise, plain_noise)
    plain = plain_model.prepare(pixels, labels, (plain_noise,))
    copies, _, latents = model.prepare(pixels, labels, (noise, offsets))
    np.testing.assert_array_equal(latents, plain[2])
    np.testing.assert_array_equal(copies, Shifts(2).copies(pixels, offsets))
    np.testing.assert_array_equal(plain[0], pixels)


@pytest.mark.parametrize("engine", ["book-keeping", "reference"])
def test_a_whole_fit_with_shifts_charges_what_it_charges_without(engine):
    images, labels = images_and_labels(24)
    events = []
    for augmentation in (Shifts(1), None):
        model = tiny_model(
            augmentation=augmentation, draws=2, engine=engine, pretraining=NoPretraining(), privacy=Privacy(50.0, 1e-5)
        )
        before = model.decoder.get_weights()
        model.fit(images, labels, batch_size=8, steps_per_epoch=1, verbose=0)
        assert not any(np.array_equal(a, b) for a, b in zip(before, model.decoder.get_weights()))
        events.append(model.ledger.events)
    assert events[0] == events[1]


def test_configuration_comes_back():
    model = tiny_model(augmentation=Shifts(3))
    assert DP2VAE.from_config(model.get_config()).augmentation == Shifts(3)
    assert DP2VAE.from_config(tiny_model().get_config()).augmentation is None
    assert keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(Shifts(2))) == Shifts(2)


@pytest.mark.parametrize("pixels", [0, -1, 1.5, True])
def test_shifts_that_are_no_whole_number_are_refused(pixels):
    with pytest.raises(InvalidInputError, match="pixels"):
        Shifts(pixels)


def test_shifts_out_of_the_image_are_refused():
    with pytest.raises(InvalidInputError, match=f"choose less than {SHAPE[0]}"):
        tiny_model(CLASSES, augmentation=Shifts(SHAPE[0]))
