"""DP2VAE as a Keras user meets it: compile, fit, evaluate, predict, callbacks, and what each phase trains."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import CLASSES, DREAMS, IMAGES, LABELS, LATENT, SHAPE, equal_weights, fit, some_records, tiny_model

from tf_dp2vae.accounting import Privacy
from tf_dp2vae.checkpoints import Phase
from tf_dp2vae.mechanisms import Mechanisms
from tf_dp2vae.model import DP2VAE
from tf_dp2vae.networks import build_decoder, build_encoder
from tf_dp2vae.optimizers import DPSGD, DPAdam
from tf_dp2vae.pretraining import Dreams, NoPretraining, Public, Unprotected
from tf_dp2vae.priors import GaussianPrior
from tf_dp2vae.records import Records
from tf_dp2vae.refinement import Refinement
from tf_dp2vae.saved import load
from tf_dp2vae.validation import InvalidInputError
from tf_dp2vae.wake_sleep import Sleep


def test_history_has_an_entry_an_epoch_and_epsilon_grows_to_the_target(trained):
    model, history = trained
    assert set(history.history) >= {"loss", "epsilon"} and len(history.history["loss"]) == 2
    first, last = history.history["epsilon"]
    assert 0 < first < last <= model.privacy.epsilon
    # The latent moments come after the last step and take the rest.
    assert last < model.ledger.epsilon(1e-5) <= 1.0
    assert all(np.isfinite(history.history["loss"]))


def test_trained_model_holds_finite_weights_that_moved(trained):
    model, _ = trained
    fresh = build_decoder(SHAPE, LATENT, CLASSES, width=2)
    assert all(np.isfinite(weight).all() for weight in model.get_weights())
    assert not any(np.array_equal(a, b) for a, b in zip(model.decoder.get_weights(), fresh.get_weights()))
    assert not np.allclose(model.latent_prior.scales.numpy(), np.eye(LATENT))
    np.testing.assert_allclose(model.latent_prior.frequencies.numpy().sum(), 1, rtol=1e-5)


def test_evaluate_is_the_mean_elbo_whatever_the_batches(trained):
    model, _ = trained
    results = {
        name: float(value)
        for name, value in model.evaluate(IMAGES, LABELS, batch_size=20, verbose=0, return_dict=True).items()
    }
    assert set(results) == {"loss", "reconstruction", "kl"}
    assert results["loss"] == pytest.approx(results["reconstruction"] + results["kl"], rel=0.02)
    mean, log_variance = (part.numpy() for part in model.encode(tf.constant(IMAGES / 255, tf.float32), LABELS))
    kl = 0.5 * (np.exp(log_variance) + mean**2 - 1 - log_variance).sum(1).mean()
    assert results["kl"] == pytest.approx(kl, rel=1e-3)
    floats = model.evaluate(IMAGES / 255, LABELS, verbose=0, return_dict=True)
    assert float(floats["kl"]) == pytest.approx(kl, rel=1e-3)


def test_predict_reconstructs_bytes_and_floats_alike(trained):
    model, _ = trained
    from_bytes = model.predict((IMAGES, LABELS), verbose=0)
    assert from_bytes.shape == IMAGES.shape and from_bytes.min() > 0 and from_bytes.max() < 1
    np.testing.assert_allclose(from_bytes, model.predict((IMAGES / 255, LABELS), verbose=0), atol=1e-5)
    with pytest.raises(InvalidInputError, match="label"):
        model.predict(IMAGES, verbose=0)


def test_images_with_and_without_their_channel_are_measured_alike():
    model = tiny_model()
    for first, second in ((IMAGES, IMAGES[..., 0]), (IMAGES[..., 0], IMAGES)):
        found, again = (float(model.evaluate(images, LABELS, verbose=0)[2]) for images in (first, second))
        assert found == pytest.approx(again, rel=1e-5)  # the KL term has no draws
        shown, anew = (model.predict((images, LABELS), verbose=0) for images in (first, second))
        assert shown.shape == anew.shape == IMAGES.shape
        np.testing.assert_allclose(shown, anew, atol=1e-6)


def test_unlabelled_model_trains_evaluates_and_samples(tmp_path):
    model = tiny_model(0, prior=GaussianPrior())
    model.compile("dp-sgd")
    fit(model, IMAGES[..., 0] / 255, None, validation_data=(IMAGES[:8],))
    assert np.isfinite(model.evaluate(IMAGES, verbose=0, return_dict=True)["loss"])
    assert model.predict(IMAGES, verbose=0).shape == IMAGES.shape
    model.export_sampler(tmp_path / "sampler")
    sampler = tf.saved_model.load(str(tmp_path / "sampler"))
    images = sampler.sample(3, 5).numpy()
    assert images.shape == (3, *SHAPE)
    np.testing.assert_array_equal(images, sampler.sample(3, 5))
    assert not np.array_equal(images, sampler.sample(3, 6))
    positional, named = sampler.sample.concrete_functions[0].structured_input_signature
    assert [spec.name for spec in positional] == ["num", "seed"] and not named
    assert sampler.num_classes() == 0 and not sampler.sample_records(3, 5)[1].numpy().any()
    assert sampler.sample_records(3, 5)[0].shape == images.shape == (3, *sampler.image_shape().numpy())


def test_validation_data_and_passive_callbacks_are_welcome(tmp_path):
    model = tiny_model()
    seen = []
    watch = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(logs["epsilon"]))
    log = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    history = fit(model, epochs=2, callbacks=[log, watch], validation_data=(IMAGES[:8], LABELS[:8]))
    assert len(history.history["val_loss"]) == 2
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 3
    assert len(seen) == 4 and seen == sorted(seen) and len(set(seen)) == 4


def test_latent_means_are_clipped_at_the_share_of_their_norm(monkeypatch):
    asked, release = [], Mechanisms.latent_moments

    def watched(door, records, event, encode, bound, *more, **named):
        asked.append(bound)
        return release(door, records, event, encode, bound, *more, **named)

    monkeypatch.setattr(Mechanisms, "latent_moments", watched)
    fit(tiny_model(prior=GaussianPrior(clip=1.3)))
    assert asked == [pytest.approx(1.3 * np.sqrt(LATENT))]


def test_checkpoints_at_fixed_times_are_welcome(tmp_path):
    fit(
        tiny_model(),
        callbacks=[keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.weights.h5", save_weights_only=True)],
    )
    assert [path.name for path in tmp_path.iterdir()] == ["1.weights.h5"]


def test_private_training_multiplies_matrices_in_float32_and_puts_the_setting_back():
    enabled, seen = tf.config.experimental.tensor_float_32_execution_enabled, []
    tf.config.experimental.enable_tensor_float_32_execution(True)
    fit(tiny_model(), callbacks=[keras.callbacks.LambdaCallback(on_epoch_begin=lambda *_: seen.append(enabled()))])
    assert seen == [False] and enabled()


def test_keras_defaults_of_fit_are_no_wishes():
    model = tiny_model()
    fit(model, shuffle=True, initial_epoch=0, validation_split=0.0, validation_freq=1)
    assert model.ledger.events


def test_evaluation_takes_records_as_it_takes_arrays():
    model, records = tiny_model(), Records(IMAGES, LABELS, CLASSES)
    history = fit(model, validation_data=records)
    assert "val_loss" in history.history
    found, expected = model.evaluate(records, verbose=0), model.evaluate(IMAGES, LABELS, verbose=0)
    np.testing.assert_allclose(found, expected, rtol=0.02)  # each draws latents of its own
    with pytest.raises(InvalidInputError, match="leave y out"):
        model.evaluate(records, LABELS)


@pytest.mark.parametrize("name, kind", [("dp-adam", DPAdam), ("dp-sgd", DPSGD)])
def test_compile_by_name(name, kind):
    model = tiny_model()
    model.compile(optimizer=name)
    assert type(model.optimizer) is kind


class EncoderAt(keras.callbacks.Callback):
    """Keeps the encoder's weights at the beginning of the private phase, which is the only one with callbacks."""

    def on_train_begin(self, logs=None):
        self.encoder, self.decoder = self.model.encoder.get_weights(), self.model.decoder.get_weights()


@pytest.mark.parametrize("optimizer", ["dp-adam", DPAdam(use_ema=True, ema_momentum=0.9)], ids=["plain", "averaged"])
def test_private_phase_leaves_the_published_encoder_bit_identical(optimizer):
    model, watch = tiny_model(pretraining=Unprotected(epochs=1)), EncoderAt()
    model.compile(optimizer)
    untrained, initial = model.encoder.get_weights(), model.decoder.get_weights()
    fit(model, callbacks=[watch], epochs=2)
    assert equal_weights(watch.encoder, model.encoder.get_weights())
    assert not equal_weights(untrained, model.encoder.get_weights())
    assert equal_weights(watch.decoder, initial), "the decoder that saw records has to be thrown away"
    assert not equal_weights(initial, model.decoder.get_weights())
    assert model.privacy_statement().to_json()["epsilon"] is None


@pytest.mark.parametrize("engine", ["book-keeping", "reference"])
def test_without_pretraining_both_networks_learn_privately(engine):
    model = tiny_model(pretraining=NoPretraining(), engine=engine, draws=2, privacy=Privacy(50.0, 1e-5))
    encoder, decoder = model.encoder.get_weights(), model.decoder.get_weights()
    fit(model)
    assert not equal_weights(encoder, model.encoder.get_weights())
    assert not equal_weights(decoder, model.decoder.get_weights())
    assert [event.mechanism for event in model.ledger.events] == ["clipped gradient sum"]


def test_sleep_trains_the_encoder_between_rounds_only():
    model, rounds = tiny_model(pretraining=Dreams(steps=2, sleep_steps=2)), []
    watch = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda *_: rounds.append(model.encoder.get_weights()),
        on_train_end=lambda *_: rounds.append(model.encoder.get_weights()),
    )
    fit(model, epochs=2, callbacks=[watch])
    assert not equal_weights(rounds[0], rounds[1]) and equal_weights(rounds[1], rounds[2])
    assert [event.mechanism for event in model.ledger.events][-1] == "clipped gradient sum"


def test_each_step_of_each_sleep_has_a_seed_of_its_own(monkeypatch):
    seeds, step = [], Sleep._step

    def look(self, seed):
        tf.py_function(lambda given: seeds.append(tuple(given.numpy())), [seed], [])
        step(self, seed)

    monkeypatch.setattr(Sleep, "_step", look)
    fit(tiny_model(pretraining=Dreams(steps=2, sleep_steps=3)), epochs=3)
    assert len(set(seeds)) == len(seeds) == 2 * 3


def test_sleep_dreams_with_averages_of_what_is_trained_and_with_what_is_fixed(monkeypatch):
    model, dreamt = tiny_model(pretraining=Dreams(steps=2, sleep_steps=2)), []
    fixed = next(layer for layer in model.decoder.layers if layer.weights)
    fixed.trainable = False
    before, sleep = fixed.get_weights(), Sleep._sleep

    def look(self, *arguments):
        tf.py_function(lambda: dreamt.append(self._dreaming.get_weights()), [], [])
        averages = model.optimizer._model_variables_moving_average
        tf.py_function(lambda: dreamt.append([average.numpy() for average in averages]), [], [])
        return sleep(self, *arguments)

    monkeypatch.setattr(Sleep, "_sleep", look)
    model.compile(DPAdam(use_ema=True, ema_momentum=0.9))
    fit(model, epochs=2)
    weights, averages = dreamt
    assert equal_weights(weights[: len(before)], before) and equal_weights(fixed.get_weights(), before)
    assert equal_weights(weights[len(before) :], averages)
    assert not equal_weights(averages, model.decoder.get_weights()[len(before) :])


def test_second_fit_with_a_larger_budget_pretrains_the_encoder_again():
    model, begin = tiny_model(pretraining=DREAMS), EncoderAt()
    fit(model)
    after_first = model.encoder.get_weights()
    model.privacy = Privacy(3.0, 1e-5)
    fit(model, callbacks=[begin])
    assert not equal_weights(after_first, begin.encoder)


def test_evaluation_leaves_no_trace_in_what_is_trained_afterwards():
    """How many batches records were evaluated in is a private number."""
    weights = []
    for evaluated in (False, True):
        keras.utils.set_random_seed(0)
        model, begin = (
            tiny_model(pretraining=Public(steps=2, sleep_steps=0, data=some_records(300, seed=5))),
            EncoderAt(),
        )
        if evaluated:
            model.evaluate(some_records(), verbose=0)
        fit(model, callbacks=[begin])
        weights.append([*begin.encoder, *begin.decoder])
    assert equal_weights(*weights)


def test_each_phase_trains_its_own_variables():
    """Keras asks a model for them, for averages among others."""
    model = tiny_model(pretraining=DREAMS)
    decoder = model.decoder.trainable_variables
    assert model.trainable_weights == model.trainable_variables == decoder
    model.phase = Phase.PRETRAINING
    assert model.trainable_weights == model.trainable_variables == [*model.encoder.trainable_variables, *decoder]
    whole = tiny_model(pretraining=NoPretraining())
    assert whole.trainable_variables == [*whole.encoder.trainable_variables, *whole.decoder.trainable_variables]


def test_layers_that_came_frozen_stay_frozen(tmp_path):
    image, label = keras.Input(SHAPE), keras.Input((CLASSES,))
    hidden = keras.layers.Dense(4, activation="tanh", trainable=False, name="kept")(keras.layers.Flatten()(image))
    hidden = keras.layers.Concatenate()([hidden, label])
    encoder = keras.Model([image, label], [keras.layers.Dense(LATENT)(hidden) for _ in range(2)])
    before = encoder.get_layer("kept").get_weights()
    model = DP2VAE(encoder, build_decoder(SHAPE, LATENT, CLASSES, width=2), pretraining=Dreams(4, sleep_steps=2))
    model.compile("dp-adam")
    fit(model, epochs=2)
    assert equal_weights(before, encoder.get_layer("kept").get_weights())
    model.save(tmp_path / "model.keras")
    again = load(tmp_path / "model.keras")
    assert [layer.trainable for layer in again.encoder.layers if layer.weights] == [False, True, True]


def test_encoder_that_came_frozen_is_used_as_it_is():
    encoder = build_encoder(SHAPE, LATENT, CLASSES, 1)
    encoder.trainable = False
    before = [weights for layer in encoder.layers if layer.name != "projection" for weights in layer.get_weights()]
    model = DP2VAE(encoder, build_decoder(SHAPE, LATENT, CLASSES, 2), pretraining=Dreams(4, sleep_steps=2))
    model.compile("dp-adam")
    fit(model, epochs=2)
    after = [weights for layer in encoder.layers if layer.name != "projection" for weights in layer.get_weights()]
    assert equal_weights(before, after)


def test_half_precision_by_policy_after_the_networks_changes_nothing():
    """Keras's policy says what layers are built with from then on: none of ours follows it."""
    encoder, decoder = build_encoder(SHAPE, LATENT, CLASSES, 1), build_decoder(SHAPE, LATENT, CLASSES, 2)
    for policy in ("mixed_float16", "mixed_bfloat16"):
        keras.config.set_dtype_policy(policy)
        try:
            model = DP2VAE(encoder, decoder, pretraining=DREAMS, refinement=Refinement(steps=1))
            model.compile("dp-adam")
            fit(model)
        finally:
            keras.config.set_dtype_policy("float32")
        assert model.sampler().sample(2, 1, 1).dtype == tf.float32


@pytest.mark.parametrize("optimizer, ordinary", [(DPAdam, keras.optimizers.Adam), (DPSGD, keras.optimizers.SGD)])
def test_first_argument_of_an_optimizer_is_its_learning_rate(optimizer, ordinary):
    assert float(optimizer(0.25).learning_rate) == 0.25
    assert float(optimizer().learning_rate) == float(ordinary().learning_rate)


@pytest.mark.parametrize("pretraining", [DREAMS, NoPretraining()], ids=["frozen encoder", "none"])
def test_summary_counts_every_weight_once(pretraining):
    model = tiny_model(pretraining=pretraining)
    trained, others = model.trainable_variables, model.non_trainable_variables
    assert {id(one) for one in [*trained, *others]} == {id(one) for one in model.variables}
    assert len(trained) + len(others) == len(model.variables)
    assert len(trained) + len(model.non_trainable_weights) == len(model.weights)
    frozen = any(one is other for one in model.encoder.trainable_variables for other in others)
    assert frozen == model.pretraining.freezes_encoder
    lines = []
    model.summary(print_fn=lambda line, **_: lines.append(line))
    assert f"Total params: {sum(int(np.prod(one.shape)) for one in model.weights):,}" in "".join(lines)
