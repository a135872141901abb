"""DP2VAE as a Keras user meets it: compile, fit, evaluate, predict, callbacks, saving, export."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import CLASSES, DREAMS, LATENT, SHAPE, images_and_labels, some_records, tiny_model
from small_networks import CentredOnceTrained

from tf_dp2vae import accounting
from tf_dp2vae.accounting import Event, Privacy
from tf_dp2vae.checkpoints import Checkpoints, Phase
from tf_dp2vae.ledger import Ledger
from tf_dp2vae.mechanisms import Mechanisms
from tf_dp2vae.model import DP2VAE
from tf_dp2vae.networks import build_decoder, build_encoder
from tf_dp2vae.optimizers import DPSGD, DPAdam
from tf_dp2vae.pretraining import Dreams, NoPretraining, Pretraining, Public, Unprotected
from tf_dp2vae.priors import GaussianPrior, NormalPrior
from tf_dp2vae.progress import EpsilonSpent
from tf_dp2vae.randomness import InsecureSeed
from tf_dp2vae.records import Records, checked_records
from tf_dp2vae.refinement import Refinement
from tf_dp2vae.reproducible import renumbered, with_names
from tf_dp2vae.saved import load
from tf_dp2vae.units import bound_per_unit
from tf_dp2vae.validation import InvalidInputError
from tf_dp2vae.wake_sleep import Sleep

IMAGES, LABELS = images_and_labels(48)


def fit(model, images=IMAGES, labels=LABELS, **arguments):
    return model.fit(images, labels, **{"batch_size": 12, "steps_per_epoch": 2, "verbose": 0, **arguments})


def equal_weights(first, second):
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


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


def test_evaluating_a_labelled_model_without_labels_is_refused(trained):
    with pytest.raises(InvalidInputError, match="label"):
        trained[0].evaluate(IMAGES, verbose=0)


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
    _, arguments = sampler.sample.concrete_functions[0].structured_input_signature
    names = [spec.name for spec in sampler.sample.concrete_functions[0].structured_input_signature[0]]
    assert names == ["num", "seed"] and not arguments


def test_validation_data_and_passive_callbacks_are_welcome(tmp_path):
    model = tiny_model()
    seen = []
    watch = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(logs["epsilon"]))
    log = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    history = fit(model, epochs=2, callbacks=[log, watch], validation_data=(IMAGES[:8], LABELS[:8]))
    assert len(history.history["val_loss"]) == 2
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 3
    assert len(seen) == 4 and seen == sorted(seen) and len(set(seen)) == 4


def test_epsilon_shown_is_never_less_than_what_was_spent():
    """Of a thousand steps ε is computed at some; between them the next one's is shown, not the last one's."""
    privacy, before = Privacy(), [Event("class statistics", 20.0)]
    plan, shown = accounting.plan(privacy, 0.01, 1000, {}, before), EpsilonSpent()
    shown.follow(before, plan, privacy)
    for step in range(1, 1001):
        shown.advance()
        if step in (1, 2, 13, 499, 500, 501, 999, 1000):
            events = [*before, replace(plan.step, count=step)]
            spent = accounting.epsilon(events, privacy.delta, privacy.accountant)
            assert spent * (1 - 1e-6) <= float(shown.result()) <= 1.5 * spent + 0.1


def test_latent_means_are_clipped_at_the_share_of_their_norm(monkeypatch):
    asked, release = [], Mechanisms.latent_moments

    def watched(door, records, event, encode, bound, *more, **named):
        asked.append(bound)
        return release(door, records, event, encode, bound, *more, **named)

    monkeypatch.setattr(Mechanisms, "latent_moments", watched)
    fit(tiny_model(prior=GaussianPrior(clip=1.3)))
    assert asked == [pytest.approx(1.3 * np.sqrt(LATENT))]


@pytest.mark.parametrize(
    "callback",
    [
        keras.callbacks.EarlyStopping("loss"),
        keras.callbacks.BackupAndRestore("nowhere"),
        keras.callbacks.ReduceLROnPlateau("loss"),
        keras.callbacks.ModelCheckpoint("never.keras", save_best_only=True),
        type("Stop", (keras.callbacks.EarlyStopping,), {})("loss"),
        type("Saves", (keras.callbacks.Callback,), {"save_best_only": True})(),
    ],
    ids=lambda callback: type(callback).__name__,
)
@pytest.mark.parametrize(
    "given",
    [
        lambda callback: callback,
        lambda callback: [keras.callbacks.History(), callback],
        lambda callback: keras.callbacks.CallbackList([callback]),
        lambda callback: [keras.callbacks.CallbackList([keras.callbacks.CallbackList([callback])])],
        lambda callback: {"first": keras.callbacks.History(), "second": [{"inner": callback}]},
    ],
    ids=["alone", "in a list", "in Keras's list", "in lists of lists", "in tables"],
)
def test_callbacks_that_decide_by_private_metrics_are_refused(callback, given):
    model = tiny_model()
    with pytest.raises(InvalidInputError, match=f"{type(callback).__name__}.*private metric"):
        fit(model, callbacks=given(callback))
    assert model.ledger.events == ()


def test_what_is_no_callback_is_refused():
    model = tiny_model()
    with pytest.raises(InvalidInputError, match="holds a function"):
        fit(model, callbacks=[lambda: None])
    assert model.ledger.events == ()


def test_checkpoints_at_fixed_times_are_welcome(tmp_path):
    fit(
        tiny_model(),
        callbacks=[keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.weights.h5", save_weights_only=True)],
    )
    assert [path.name for path in tmp_path.iterdir()] == ["1.weights.h5"]


def batches():
    yield IMAGES[:4], LABELS[:4]


WIDE_RECORDS = Records(np.zeros((48, 12, 12, 1), np.uint8), LABELS, CLASSES)
REFUSED = {
    "sample_weight": ({"sample_weight": np.ones(48)}, "bound"),
    "class_weight": ({"class_weight": {0: 2.0}}, "bound"),
    "validation_split": ({"validation_split": 0.1}, "validation_data"),
    "generator": ({"x": batches(), "y": None}, "generator"),
    "data set": ({"x": tf.data.Dataset.from_tensor_slices(IMAGES).batch(4), "y": None}, "Dataset"),
    "no data": ({"x": None, "y": None}, "arrays"),
    "initial_epoch": ({"initial_epoch": 3}, "ledger"),
    "made up": ({"colour": "red"}, "colour='red'"),
    "batch beyond the records": ({"batch_size": 49}, "49.*48 records"),
    "batch of nothing": ({"batch_size": 0}, "batch_size=0"),
    "no epochs": ({"epochs": 0}, "epochs=0"),
    "no steps": ({"steps_per_epoch": 0}, "steps_per_epoch=0"),
    "labels missing": ({"y": None}, "label"),
    "label outside": ({"y": LABELS + 1}, "0 to 2"),
    "another shape": ({"x": np.zeros((48, 12, 12))}, "12×12×1"),
    "records of another shape": ({"x": WIDE_RECORDS, "y": None}, "12×12×1.*8×8×1"),
    "labels beside records": ({"x": some_records(48)}, "leave y out"),
    "another label set": ({"x": some_records(48, classes=5), "y": None}, "5 classes"),
}


@pytest.mark.parametrize("arguments, words", REFUSED.values(), ids=REFUSED)
def test_what_fit_refuses_costs_nothing(arguments, words):
    model = tiny_model()
    given = {"x": IMAGES, "y": LABELS, "batch_size": 12, "verbose": 0, **arguments}
    with pytest.raises(InvalidInputError, match=words):
        model.fit(**given)
    assert model.ledger.events == () and model.num_records is None


def test_fit_needs_compile_and_train_on_batch_is_refused():
    encoder, decoder = build_encoder(SHAPE, LATENT, width=1), build_decoder(SHAPE, LATENT, width=1)
    model = DP2VAE(encoder, decoder)
    with pytest.raises(InvalidInputError, match="compile"):
        fit(model, labels=None)
    with pytest.raises(InvalidInputError, match="Poisson"):
        model.train_on_batch(IMAGES[:4])
    with pytest.raises(ValueError, match="train the model"):
        model.privacy_statement()


def test_networks_that_do_not_fit_together_are_refused():
    with pytest.raises(InvalidInputError, match=r"\[2, 2, 3\]"):
        DP2VAE(build_encoder(SHAPE, 2, width=1), build_decoder(SHAPE, 3, width=1))
    with pytest.raises(InvalidInputError, match="must be equal"):
        DP2VAE(build_encoder((8, 12, 1), 2, width=1), build_decoder(SHAPE, 2, width=1))

    with pytest.raises(InvalidInputError, match="labels of 5 classes, the decoder of 3"):
        DP2VAE(build_encoder(SHAPE, 2, 5, width=1), build_decoder(SHAPE, 2, 3, width=1))
    with pytest.raises(InvalidInputError, match="labels of 3 classes, the decoder of 0"):
        DP2VAE(build_encoder(SHAPE, 2, 3, width=1), build_decoder(SHAPE, 2, width=1))


def test_private_training_multiplies_matrices_in_float32_and_puts_the_setting_back():
    enabled, seen = tf.config.experimental.tensor_float_32_execution_enabled, []
    tf.config.experimental.enable_tensor_float_32_execution(True)
    fit(tiny_model(), callbacks=[keras.callbacks.LambdaCallback(on_epoch_begin=lambda *_: seen.append(enabled()))])
    assert seen == [False] and enabled()


def test_the_clip_is_the_guarantees_and_another_one_of_the_optimizer_is_refused():
    model = tiny_model(privacy=Privacy(1.0, 1e-5, l2_norm_clip=0.5))
    model.compile(DPAdam(l2_norm_clip=0.1))
    with pytest.raises(InvalidInputError, match=r"l2_norm_clip=0.1.*Privacy\(l2_norm_clip=0.5\)"):
        fit(model)
    assert model.ledger.events == ()
    for optimizer in (DPAdam(l2_norm_clip=0.5), DPAdam()):
        model = tiny_model(privacy=Privacy(1.0, 1e-5, l2_norm_clip=0.5))
        model.compile(optimizer)
        fit(model)
        assert model.optimizer.l2_norm_clip == 0.5


def test_more_than_one_step_at_a_time_is_refused():
    model = tiny_model()
    model.steps_per_execution = 2
    with pytest.raises(InvalidInputError, match="steps_per_execution"):
        fit(model)


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


@pytest.mark.parametrize(
    "data, words",
    [
        ((IMAGES[:8],), "labels"),
        ((IMAGES[:8, 1:], LABELS[:8]), "not the declared"),
        ((IMAGES[:8], LABELS[:8] + CLASSES), "outside the declared label set"),
        ((IMAGES[:8], LABELS[:8], np.ones(8)), r"must be \(x, y\)"),
        (IMAGES[:8], r"must be \(x, y\)"),
    ],
)
def test_unusable_validation_data_are_refused_before_anything_is_charged(data, words):
    model = tiny_model()
    with pytest.raises(InvalidInputError, match=words):
        fit(model, validation_data=data)
    assert not model.ledger.events and model.ledger.num_records is None


def test_a_loaded_model_stays_with_its_data_set(trained):
    again = DP2VAE.from_config(trained[0].get_config())
    again.compile("dp-adam")
    with pytest.raises(InvalidInputError, match="belongs to a data set of 48 records, not 60"):
        again.fit(*images_and_labels(60), batch_size=12, steps_per_epoch=1, verbose=0)


def test_one_callback_needs_no_list_and_a_numpy_number_is_told_what_to_be():
    seen = []
    fit(tiny_model(), callbacks=keras.callbacks.LambdaCallback(on_train_begin=lambda logs: seen.append(True)))
    assert seen
    with pytest.raises(InvalidInputError, match=r"convert it, int\(epochs\)"):
        fit(tiny_model(), epochs=np.int64(2))


def test_checkpoints_in_a_folder_that_is_not_there_are_refused_before_anything_is_spent(tmp_path):
    ledger = Ledger(tmp_path / "ledger")
    with pytest.raises(InvalidInputError, match="does not exist; create it first"):
        fit(tiny_model(checkpoints=Checkpoints(tmp_path / "nowhere"), ledger=ledger))
    assert not ledger.events
    ledger.close()


def test_checkpoints_without_a_ledger_on_disk_are_refused(tmp_path):
    with pytest.raises(InvalidInputError, match=r"could not be resumed.*Ledger\(path\)"):
        fit(tiny_model(checkpoints=Checkpoints(str(tmp_path))))
    assert not list(tmp_path.iterdir())
    ledger = Ledger(tmp_path / "ledger")
    fit(tiny_model(checkpoints=Checkpoints(str(tmp_path), 0), ledger=ledger))
    assert list((tmp_path / "checkpoints").iterdir())
    ledger.close()


@pytest.mark.parametrize("shared", [False, True])
def test_a_loaded_model_charges_the_ledger_in_its_file_or_nothing(tmp_path, shared):
    ledger = Ledger(tmp_path / "ledger", shared=shared)
    model = tiny_model(ledger=ledger, privacy=Privacy(2.0, 1e-5))
    fit(model)
    model.save(tmp_path / "model.keras")
    ledger.close()
    again = load(tmp_path / "model.keras")
    assert again.privacy_statement().to_json() == model.privacy_statement().to_json()
    assert again.privacy_statement().to_json()["shared_ledger"] is shared
    again.privacy = Privacy(4.0, 1e-5)
    with pytest.raises(InvalidInputError, match=r"model.ledger = Ledger\(path\)"):
        fit(again)
    again.save(tmp_path / "model.keras")
    assert load(tmp_path / "model.keras").ledger.detached, "the copy of a copy"
    with pytest.raises(InvalidInputError, match=r"does not hold what this model.*clipped gradient sum"):
        again.ledger = Ledger()
    again.ledger = Ledger(tmp_path / "ledger", shared=shared)
    before = len(again.ledger.charges)
    fit(again)
    again.ledger.close()
    assert len(Ledger(tmp_path / "ledger").charges) == before + 2


def test_an_engine_that_is_not_known_is_refused_before_anything_is_trained():
    with pytest.raises(InvalidInputError, match="engine='fast'.*book-keeping, reference"):
        tiny_model(engine="fast")


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


def test_pretraining_by_hand_is_refused():
    """The statement knows what `fit` pre-trained on, and of nothing else."""
    model = tiny_model(pretraining=DREAMS)
    data = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(8)
    for fitted in (False, True):
        if fitted:
            fit(model)
        before = model.get_weights()
        with pytest.raises(InvalidInputError, match="for Pretraining.run.*Public"):
            model.pretrain(data, 2, 1e-2)
        assert equal_weights(before, model.get_weights())


def test_public_pretraining_needs_data_alike():
    with pytest.raises(InvalidInputError, match="no data"):
        fit(tiny_model(pretraining=Public(steps=1)))
    model = tiny_model(pretraining=Public(steps=1, sleep_steps=0, data=some_records(300, seed=5)))
    fit(model)
    assert [event.mechanism for event in model.ledger.events] == ["clipped gradient sum"]
    assert model.privacy_statement().to_json()["end_to_end"] is True


def test_config_round_trip():
    model = tiny_model(draws=3, seed=5, privacy=Privacy(2.0, 1e-6, "pld", 0.5), pretraining=Dreams(steps=7), prior=None)
    again = DP2VAE.from_config(model.get_config())
    assert again.get_config() == model.get_config()
    assert again.privacy == model.privacy and again.pretraining == model.pretraining and again.draws == 3


def test_keras_file_keeps_weights_ledger_and_guarantee(trained, tmp_path):
    model, _ = trained
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert equal_weights(model.get_weights(), again.get_weights())
    assert equal_weights(model.latent_prior.get_weights(), again.latent_prior.get_weights())
    assert again.ledger.events == model.ledger.events and len(again.ledger.events) == 4
    assert again.optimizer.noise_multiplier == model.optimizer.noise_multiplier
    assert equal_weights([v.numpy() for v in model.optimizer.variables], [v.numpy() for v in again.optimizer.variables])
    np.testing.assert_array_equal(
        again.predict((IMAGES, LABELS), verbose=0), model.predict((IMAGES, LABELS), verbose=0)
    )
    assert again.privacy_statement().to_json() == model.privacy_statement().to_json()
    with pytest.raises(InvalidInputError, match="budget"):
        fit(again)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_networks_of_reduced_precision_are_refused(policy):
    keras.config.set_dtype_policy(policy)
    try:
        with pytest.raises(InvalidInputError, match="reduced precision.*float32"):
            tiny_model()
    finally:
        keras.config.set_dtype_policy("float32")


# --- the seed for research ---


def seeded(seed, **arguments):
    keras.utils.set_random_seed(0)
    model = tiny_model(pretraining=DREAMS, prior=None, entropy=InsecureSeed(seed), **arguments)
    model.fit(IMAGES, LABELS, batch_size=12, epochs=2, steps_per_epoch=3, verbose=0)
    return model


def test_insecure_seed_makes_a_run_reproducible_and_voids_its_statement(tmp_path):
    model, again, other = seeded(3), seeded(3), seeded(4)
    assert equal_weights(model.get_weights(), again.get_weights())
    assert not equal_weights(model.get_weights(), other.get_weights())
    model.save(tmp_path / "model.keras")
    for states in (model, keras.saving.load_model(tmp_path / "model.keras")):
        entry = states.privacy_statement().to_json()
        assert entry["epsilon"] is entry["epsilon_rdp"] is entry["epsilon_pld"] is None
        assert "No guarantee holds" in entry["noise"] and str(states.privacy_statement()).count("NOT PRIVATE") == 1


def test_seed_that_takes_the_place_of_entropy_later_voids_the_statement_too():
    model = tiny_model()
    model.mechanisms.entropy = InsecureSeed(1)
    fit(model)
    assert model.privacy_statement().to_json()["epsilon"] is None


@pytest.mark.parametrize("arguments", [{"entropy": InsecureSeed(1)}, {"pretraining": Unprotected(1)}])
def test_run_without_a_guarantee_is_refused_on_a_shared_ledger(tmp_path, arguments):
    with pytest.raises(InvalidInputError, match="shared ledger"):
        tiny_model(**arguments, ledger=Ledger(tmp_path / "ledger", 48, shared=True))


@pytest.mark.parametrize("first", [True, False])
def test_one_ledger_never_holds_runs_with_and_without_a_guarantee(tmp_path, first):
    ways = [{}, {"entropy": InsecureSeed(1)}]
    ledger = Ledger(tmp_path / "ledger", 48)
    fit(tiny_model(**ways[not first], ledger=ledger))
    ledger.close()
    again = Ledger(tmp_path / "ledger", 48)
    tiny_model(**ways[not first], ledger=again)
    with pytest.raises(InvalidInputError, match="ledger of its own"):
        tiny_model(**ways[first], ledger=again)


class Remembering(keras.layers.Layer):
    """Hands its input on and counts what it saw."""

    def build(self, shape):
        self.seen = self.add_weight(shape=shape[1:], initializer="zeros", trainable=False)

    def call(self, inputs):
        self.seen.assign(self.seen + tf.reduce_sum(inputs, axis=0))
        return inputs


def test_weights_that_records_change_without_noise_are_put_back(monkeypatch):
    latent, label = keras.Input((LATENT,)), keras.Input((CLASSES,))
    hidden = keras.layers.Concatenate()([latent, Remembering()(label)])
    decoder = keras.Model([latent, label], keras.layers.Reshape(SHAPE)(keras.layers.Dense(64)(hidden)))
    with pytest.raises(InvalidInputError, match="Remembering keeps what it sees"):
        DP2VAE(tiny_model().encoder, decoder)
    monkeypatch.setattr("tf_dp2vae.model.refuse_mixing", lambda networks: None)
    model = DP2VAE(tiny_model().encoder, decoder, pretraining=NoPretraining(), prior=NormalPrior(), refinement=None)
    model.compile("dp-adam")
    with pytest.raises(InvalidInputError, match="keeps what it sees"):
        fit(model)
    assert not model.ledger.events
    monkeypatch.setattr("tf_dp2vae.model.refuse_mixing_once_trained", lambda networks: None)
    with pytest.raises(InvalidInputError, match="changed weights without noise"):
        fit(model)
    assert not np.any(decoder.non_trainable_variables[0])


@pytest.mark.parametrize("thawed", [False, True])
def test_layer_that_mixes_only_when_it_is_trained_is_refused_once_it_is_thawed(thawed):
    image, label = keras.Input(SHAPE), keras.Input((CLASSES,))
    norm = keras.layers.BatchNormalization(name="norm")
    hidden = keras.layers.Concatenate()([norm(keras.layers.Flatten()(image)), label])
    encoder = keras.Model([image, label], [keras.layers.Dense(LATENT)(hidden), keras.layers.Dense(LATENT)(hidden)])
    norm.trainable = False
    arguments = {"prior": NormalPrior(), "refinement": None}
    model = DP2VAE(encoder, tiny_model().decoder, pretraining=NoPretraining(), **arguments)
    model.compile("dp-adam")
    if thawed:
        norm.trainable = True
        with pytest.raises(InvalidInputError, match="norm .BatchNormalization"):
            fit(model)
        assert model.ledger.events == ()
    else:
        before = norm.get_weights()
        fit(model)
        assert equal_weights(before, norm.get_weights())


class Scaled(CentredOnceTrained):
    """As many weights, and nothing mixed."""

    def call(self, inputs):
        return inputs - self.gain * inputs


@pytest.mark.parametrize("pretraining", [NoPretraining(), DREAMS], ids=["none", "dreams"])
def test_network_that_takes_the_place_of_another_is_looked_at(pretraining):
    def decoder(kind):
        latent, label = keras.Input((LATENT,)), keras.Input((CLASSES,))
        hidden = kind()(keras.layers.Concatenate()([latent, label]))
        return keras.Model([latent, label], keras.layers.Reshape(SHAPE)(keras.layers.Dense(64)(hidden)))

    model = DP2VAE(tiny_model().encoder, decoder(Scaled), pretraining=pretraining, refinement=None)
    model.decoder = decoder(CentredOnceTrained)
    model.compile("dp-adam")
    with pytest.raises(InvalidInputError, match="CentredOnceTrained mixes examples"):
        fit(model)
    assert not any(event.mechanism == "clipped gradient sum" for event in model.ledger.events)


def test_public_data_must_not_be_the_records():
    with some_records(48).opened() as (images, labels):
        first, rest = Records(images[:30], labels[:30], CLASSES), Records(images[30:], labels[30:], CLASSES)
        overlapping = Records(images[20:40], labels[20:40], CLASSES)
    for public in (first, overlapping):
        model = tiny_model(pretraining=Public(steps=1, data=public))
        with pytest.raises(InvalidInputError, match="public data are the records"):
            model.fit(first, batch_size=8, verbose=0)
        assert model.ledger.events == ()
    Public(steps=1, data=rest).check_records(first)


def bounded(images, labels):
    return bound_per_unit(checked_records(images, labels, CLASSES), np.arange(len(images)) // 2, "person", 1)


@pytest.mark.parametrize(
    "made",
    [
        lambda images, labels: checked_records(images, labels, CLASSES),
        lambda images, labels: checked_records(images, labels + 1, CLASSES, invalid="null"),
        lambda images, labels: checked_records(images, labels, CLASSES).joined(
            IMAGES[:2], LABELS[:2], np.ones(2, bool)
        ),
        bounded,
    ],
    ids=["as they are", "some null", "with canaries", "of persons"],
)
@pytest.mark.parametrize("floats", [False, True])
@pytest.mark.filterwarnings("ignore:.*count as null")
def test_public_data_are_known_for_the_records_whatever_was_made_of_these(made, floats):
    images, labels = images_and_labels(48)
    images = images / 255 if floats else images
    public = Public(steps=1, data=checked_records(images, labels, CLASSES))
    with pytest.raises(InvalidInputError, match="public data are the records"):
        public.check_records(made(images, labels))
    public.check_records(made(images.copy(), labels))


def test_what_a_statement_says_of_pretraining_stays(trained, tmp_path):
    model, _ = trained
    with pytest.raises(InvalidInputError, match="build a new model"):
        model.pretraining = NoPretraining()
    fresh = tiny_model()
    fresh.pretraining = Unprotected(epochs=1)
    fit(fresh)
    assert not fresh.privacy_statement().holds
    shared = tiny_model(ledger=Ledger(tmp_path / "ledger", shared=True))
    shared.pretraining = Unprotected(epochs=1)
    with pytest.raises(InvalidInputError, match="shared ledger"):
        fit(shared)


def test_networks_are_looked_at_as_they_come_and_again_only_when_what_is_trained_changes(monkeypatch):
    seen = []
    monkeypatch.setattr("tf_dp2vae.model.refuse_mixing", lambda networks: seen.append(networks[0].trainable))
    model = tiny_model(pretraining=Dreams(steps=2, sleep_steps=2))
    fit(model, epochs=2)
    assert seen == [True]
    model.encoder.trainable, model.privacy = False, Privacy(3.0, 1e-5)
    fit(model)
    assert seen == [True, False]


def test_each_phase_trains_its_own_variables():
    """Keras asks a model for them, for averages among others."""
    model = tiny_model(pretraining=DREAMS)
    decoder = model.decoder.trainable_variables
    assert model.trainable_weights == model.trainable_variables == decoder
    model.phase = Phase.PRETRAINING
    assert model.trainable_weights == model.trainable_variables == [*model.encoder.trainable_variables, *decoder]
    whole = tiny_model(pretraining=NoPretraining())
    assert whole.trainable_variables == [*whole.encoder.trainable_variables, *whole.decoder.trainable_variables]


class Unsaid(Pretraining):
    """A way of somebody's own that says nothing of what it reads."""

    def describe(self):
        return "of my own"

    def run(self, model, records):
        pass


def test_pretraining_that_does_not_say_so_has_no_end_to_end_guarantee(tmp_path):
    model = tiny_model(pretraining=Unsaid())
    fit(model)
    statement = model.privacy_statement()
    assert not statement.holds and statement.to_json()["epsilon"] is None
    with pytest.raises(InvalidInputError, match="shared ledger"):
        fit(tiny_model(pretraining=Unsaid(), ledger=Ledger(tmp_path / "ledger", shared=True)))


LOAD_ALONE = """
import importlib.util
import socket
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("tf_dp2vae", "tensorflow_privacy", "dp_accounting"):
            raise ModuleNotFoundError(name)

def no_network(*arguments):
    raise AssertionError("the sampler asked for the network")

sys.meta_path.insert(0, Absent())
socket.socket.connect = socket.getaddrinfo = no_network
import numpy as np
import tensorflow as tf
sampler = tf.saved_model.load(sys.argv[1])
try:
    importlib.util.find_spec("tf_dp2vae")
except ModuleNotFoundError:
    pass
else:
    raise AssertionError("the library can be imported here")
assert "tf_dp2vae" not in sys.modules
first, again, other = sampler.sample(5, 2, 11), sampler.sample(5, 2, 11), sampler.sample(5, 2, 12)
assert np.array_equal(first, again) and not np.array_equal(first, other)
for label in (-1, 3):
    try:
        sampler.sample(1, label, 0)
    except tf.errors.InvalidArgumentError as refusal:
        assert "label must lie in 0 to 2" in str(refusal)
    else:
        raise AssertionError("a label outside the set was accepted")
assert sampler.sample(0, 1, 0).shape == (0, 8, 8, 1)
np.save(sys.argv[2], first)
"""


def without_network(command):
    """The command in a network namespace of its own, where the system allows that; else Python's sockets are shut only."""
    allowed = (
        shutil.which("unshare") and subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode == 0
    )
    return ["unshare", "-rn", *command] if allowed else command


def test_sampler_loads_without_this_package_and_network_and_samples_by_seed(trained, tmp_path):
    model, _ = trained
    model.export_sampler(tmp_path / "sampler")
    (tmp_path / "alone.py").write_text(LOAD_ALONE)
    command = without_network([sys.executable, "-I", "alone.py", "sampler", "samples.npy"])
    ended = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    )
    assert ended.returncode == 0, ended.stderr
    sampler = tf.saved_model.load(str(tmp_path / "sampler"))
    np.testing.assert_allclose(np.load(tmp_path / "samples.npy"), sampler.sample(5, 2, 11), atol=1e-6)


def test_exports_of_one_model_are_equal_bytes_whatever_came_before(tmp_path):
    model = tiny_model(refinement=Refinement(steps=1, candidates=2))
    model.export_sampler(tmp_path / "first")
    for offset in range(3):
        tf.function(lambda x, offset=offset: x + offset)(tf.constant(1))
    model.export_sampler(tmp_path / "second")
    model.save(tmp_path / "model.keras")
    load(tmp_path / "model.keras").export_sampler(tmp_path / "loaded")
    contents = [
        {
            path.relative_to(tmp_path / name): path.read_bytes()
            for path in (tmp_path / name).rglob("*")
            if path.is_file()
        }
        for name in ("first", "second", "loaded")
    ]
    assert contents[0] == contents[1] == contents[2] and len(contents[0]) == 3
    before, after = (tf.saved_model.load(str(tmp_path / name)) for name in ("first", "second"))
    np.testing.assert_array_equal(before.sample(3, 1, 5), after.sample(3, 1, 5))


def test_names_keep_apart_what_is_numbered_apart():
    names = ["sample_9", "sample_10", "sample_save_7", "sample", "while_body_3"]
    assert renumbered(names) == {
        "sample_9": "sample_0",
        "sample_10": "sample_1",
        "sample_save_7": "sample_save_0",
        "while_body_3": "while_body_0",
    }
    assert with_names("a_1, a_12: in_a_12_b", {"a_1": "a_0", "a_12": "a_1"}) == "a_0, a_1: in_a_1_b"


def test_sampler_holds_decoder_prior_and_contrast_and_nothing_else(trained, tmp_path):
    model, _ = trained
    model.export_sampler(tmp_path / "sampler")
    reader = tf.train.load_checkpoint(str(tmp_path / "sampler" / "variables" / "variables"))
    stored = [reader.get_tensor(name) for name in reader.get_variable_to_shape_map() if "OBJECT_GRAPH" not in name]
    released = [*model.decoder.variables, *model.latent_prior.variables, *model.contrast.variables]
    expected = [variable.numpy() for variable in released]
    assert {np.asarray(value).tobytes() for value in stored} == {np.asarray(value).tobytes() for value in expected}
    content = b"".join(path.read_bytes() for path in (tmp_path / "sampler").rglob("*") if path.is_file())
    for word in (b"encoder/", b"log_variance", b"adam", b"momentum", b"velocity", b"noise_multiplier"):
        assert word not in content.lower().replace(b"decoder/", b"")


def test_samples_follow_the_prior_and_the_decoder(trained, tmp_path):
    model, _ = trained
    model.export_sampler(tmp_path / "sampler")
    sampler = tf.saved_model.load(str(tmp_path / "sampler"))
    random = np.random.default_rng(0)
    mean, scale = model.latent_prior.means.numpy()[1], model.latent_prior.scales.numpy()[1]
    latent = mean + random.standard_normal((20_000, LATENT)) @ scale.T
    expected = model.contrast(model.decode(tf.constant(latent, tf.float32), tf.ones(20_000, tf.int32))).numpy()
    found = sampler.sample(20_000, 1, 3).numpy()
    np.testing.assert_allclose(found.mean(0), expected.mean(0), atol=6 * expected.std(0).max() / np.sqrt(10_000))
    labels = np.bincount(sampler.sample_labels(20_000, 4).numpy(), minlength=CLASSES) / 20_000
    np.testing.assert_allclose(labels, model.latent_prior.frequencies.numpy(), atol=0.02)


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


def inner_half(mean):
    """A network's outputs in float32, whose only layer computes in float16."""
    inputs = keras.Input((LATENT,))
    halves = keras.layers.Dense(LATENT, name="halves", dtype=keras.mixed_precision.DTypePolicy("mixed_float16"))
    return keras.layers.Identity(dtype="float32")(keras.Model(inputs, halves(inputs))(mean))


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda image, mean: keras.Model(image, {"mean": mean, "log_variance": mean}), "outputs in a dict"),
        (lambda image, mean: keras.Model({"image": image}, [mean, mean]), "inputs in a dict"),
        (
            lambda image, mean: keras.Model(image, [keras.layers.Dense(LATENT, dtype="float64")(mean)] * 2),
            "compute in float64",
        ),
        (lambda image, mean: keras.Model(image, [inner_half(mean)] * 2), "halves compute in reduced precision"),
    ],
    ids=["dict of outputs", "dict of inputs", "float64", "float16 of a network inside"],
)
def test_networks_that_training_would_stumble_over_are_refused_before_anything_is_spent(change, words):
    image = keras.Input(SHAPE)
    mean = keras.layers.Dense(LATENT)(keras.layers.Flatten()(image))
    with pytest.raises(InvalidInputError, match=words):
        DP2VAE(change(image, mean), build_decoder(SHAPE, LATENT, CLASSES, width=2))


def test_labels_for_a_model_without_labels_are_refused_by_their_name():
    with pytest.raises(InvalidInputError, match="no label input and y was given"):
        fit(tiny_model(classes=0))


@pytest.mark.parametrize("name", ["sample", "sample_labels"])
def test_fewer_than_no_samples_are_refused(trained, name):
    model, _ = trained
    arguments = (-1, 1, 1) if name == "sample" else (-1, 1)
    with pytest.raises(tf.errors.InvalidArgumentError, match="num must be at least 0"):
        getattr(model.sampler(), name)(*arguments)


@pytest.mark.parametrize("optimizer", [DPAdam, DPSGD])
def test_first_argument_of_an_optimizer_is_its_learning_rate(optimizer):
    assert float(optimizer(0.25).learning_rate) == 0.25
    assert float(optimizer().learning_rate) == float(optimizer.__mro__[3]().learning_rate)
