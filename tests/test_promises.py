"""What a model says of its guarantee: ledgers, seeds, pre-training, and weights that change without noise."""

from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import CLASSES, DREAMS, IMAGES, LABELS, LATENT, SHAPE, equal_weights, fit, images_and_labels, tiny_model

from tf_dp2vae import accounting, planning
from tf_dp2vae.accounting import Event, Privacy
from tf_dp2vae.ledger import Ledger
from tf_dp2vae.model import DP2VAE
from tf_dp2vae.pretraining import NoPretraining, Pretraining, Unprotected
from tf_dp2vae.priors import NormalPrior
from tf_dp2vae.progress import EpsilonSpent
from tf_dp2vae.randomness import InsecureSeed
from tf_dp2vae.saved import load
from tf_dp2vae.validation import InvalidInputError


def test_epsilon_shown_is_never_less_than_what_was_spent():
    """Of a thousand steps ε is computed at some; between them the next one's is shown, not the last one's."""
    privacy, before = Privacy(), [Event("class statistics", 20.0)]
    plan, shown = planning.plan(privacy, 0.01, 1000, {}, before), EpsilonSpent()
    shown.follow(before, plan, privacy)
    for step in range(1, 1001):
        shown.advance()
        if step in (1, 2, 13, 499, 500, 501, 999, 1000):
            events = [*before, replace(plan.step, count=step)]
            spent = accounting.epsilon(events, privacy.delta, privacy.accountant)
            assert spent * (1 - 1e-6) <= float(shown.result()) <= 1.5 * spent + 0.1


def test_a_loaded_model_stays_with_its_data_set(trained):
    again = DP2VAE.from_config(trained[0].get_config())
    again.compile("dp-adam")
    with pytest.raises(InvalidInputError, match="belongs to a data set of 48 records, not 60"):
        again.fit(*images_and_labels(60), batch_size=12, steps_per_epoch=1, verbose=0)


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


def test_ledger_in_memory_that_several_runs_used_is_called_shared(tmp_path):
    ledger = Ledger()
    alone, second = (tiny_model(ledger=ledger, privacy=Privacy(epsilon)) for epsilon in (0.5, 1.0))
    fit(alone)
    assert "this run's own" in str(alone.privacy_statement())
    fit(second)
    statement = second.privacy_statement()
    assert len(statement.events) == 2 and statement.to_json()["shared_ledger"]
    assert "every run that it held" in str(statement) and "this run's own" not in str(statement)
    second.save(tmp_path / "model.keras")
    loaded = load(tmp_path / "model.keras").privacy_statement()
    assert loaded.to_json() == statement.to_json() and str(loaded) == str(statement)


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
        assert entry["epsilon"] is entry["epsilon_rdp"] is entry["epsilon_pld"] is None and not entry["end_to_end"]
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
