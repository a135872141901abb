"""A training that is killed at any moment goes on: same end, nothing paid twice, nothing answered twice."""

import json
import math
import shlex
import shutil
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import CLASSES, SHAPE, images_and_labels, some_records
from hypothesis import given, settings
from hypothesis import strategies as st

import train
from tf_dp2vae import DP2VAE, DPAdam, Dreams, GaussianPrior, Unprotected, accounting, durable
from tf_dp2vae.accounting import BudgetExceededError, Event, Privacy
from tf_dp2vae.answers import Answers, _moments
from tf_dp2vae.checkpoints import Checkpoints
from tf_dp2vae.durable import held
from tf_dp2vae.ledger import Ledger
from tf_dp2vae.mechanisms import Mechanisms
from tf_dp2vae.networks import build_decoder, build_encoder
from tf_dp2vae.private_steps import PrivateSteps
from tf_dp2vae.validation import InvalidInputError

RECORDS = some_records(48)
PRIVACY = Privacy(2.0, 1e-5)
ROUNDS, STEPS = 2, 3


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it, and whatever was in memory is thrown away."""


class Disk:
    """Every durable write, counted; kills before, in the middle of, or after one of them."""

    def __init__(self, monkeypatch, kill_at=None, moment="before"):
        self.writes, self._kill_at, self._moment = 0, kill_at, moment
        self._inner = durable.os.fsync
        monkeypatch.setattr(durable.os, "fsync", self._fsync)

    def _fsync(self, descriptor):
        self.writes += 1
        if self.writes == self._kill_at and self._moment == "before":
            raise Killed
        self._inner(descriptor)
        if self.writes == self._kill_at:
            raise Killed


def make_model(folder, ledger, seconds=0.0, pretraining=None, seed=3, width=2, privacy=PRIVACY, **arguments):
    folder.mkdir(exist_ok=True)
    model = DP2VAE(
        build_encoder(SHAPE, 2, CLASSES, width=1, seed=seed),
        build_decoder(SHAPE, 2, CLASSES, width=width, seed=seed + 1),
        privacy=privacy,
        pretraining=pretraining or Dreams(steps=3, sleep_steps=2),
        physical_batch_size=16,
        ledger=ledger,
        checkpoints=Checkpoints(folder, seconds),
        **arguments,
    )
    model.compile(DPAdam(learning_rate=0.01, use_ema=True, ema_momentum=0.5))
    return model


def fit(model, records=RECORDS, **arguments):
    given = {"batch_size": 12, "epochs": ROUNDS, "steps_per_epoch": STEPS, "verbose": 0, **arguments}
    return model.fit(records, **given)


def one_process(folder, records=RECORDS, fit_arguments=None, **arguments):
    """What one process does: opens the ledger, trains, closes it."""
    ledger = Ledger(folder.parent / "ledger", records.num_records)
    try:
        model = make_model(folder, ledger, **arguments)
        model.losses = fit(model, records, **(fit_arguments or {})).history["loss"]
        return model
    finally:
        ledger.close()


class Given:
    """Remembers every answer that was used, by charge, in order."""

    def __init__(self, monkeypatch):
        self.answers = {}
        keep, recall = Answers.keep, Answers.recall

        def kept(answers, charge, answer):
            keep(answers, charge, answer)
            self._note(charge, answer)

        def recalled(answers, charge):
            answer = recall(answers, charge)
            if answer is not None:
                self._note(charge, answer)
            return answer

        monkeypatch.setattr(Answers, "keep", kept)
        monkeypatch.setattr(Answers, "recall", recalled)

    def _note(self, charge, answer):
        answer = {name: np.array(array) for name, array in answer.items()}
        before = self.answers.setdefault(charge.hash, answer)
        assert all(np.array_equal(before[name], answer[name]) for name in answer), "two answers to one charge"


def killed_until_it_ends(tmp_path, monkeypatch, kills, **arguments):
    """Processes that are killed at the given (write, moment), then one that ends."""
    for kill_at, moment in kills:
        with monkeypatch.context() as patch:
            Disk(patch, kill_at, moment)
            try:
                return one_process(tmp_path / "run", **arguments)
            except Killed:
                keras.backend.clear_session()
    return one_process(tmp_path / "run", **arguments)


def weights(model):
    return [*model.encoder.get_weights(), *model.decoder.get_weights(), *model.latent_prior.get_weights()]


def play(monkeypatch, tmp_path, answers, **arguments):
    """An unbroken run that is given these answers in place of its mechanisms' own, and stores nothing."""
    answers = list(answers)

    def moments(self, records, event, *_, **__):
        self.charge(event)
        return _moments(answers.pop(0))

    def step(self, iterator):
        answer = answers.pop(0)
        return self._model.step_logs(math.nan) if answer is None else self._again(answer)

    with monkeypatch.context() as patch:
        patch.setattr(Mechanisms, "class_statistics", moments)
        patch.setattr(Mechanisms, "latent_moments", moments)
        patch.setattr(PrivateSteps, "__call__", step)
        model = make_model(tmp_path / "unbroken", Ledger(), **arguments)
        model.checkpoints = Checkpoints()
        fit(model)
    assert not answers
    return model


@pytest.mark.parametrize(
    "seconds, pretraining",
    [(0.0, Dreams(steps=3, sleep_steps=2)), (1e6, Dreams(steps=3, sleep_steps=2)), (0.0, Unprotected(epochs=1))],
    ids=["checkpoints at every step", "answers since the last phase", "published"],
)
def test_killed_and_resumed_run_ends_where_an_unbroken_one_with_its_answers_does(
    tmp_path, monkeypatch, seconds, pretraining
):
    options = {"seconds": seconds, "pretraining": pretraining}
    with monkeypatch.context() as patch:
        used = Given(patch)
        kills = [(14, "after"), (22, "before"), (23, "after")]
        resumed = killed_until_it_ends(tmp_path, monkeypatch, kills, **options)
    charges = Ledger(tmp_path / "ledger", 48).charges
    assert len(charges) == len(resumed.plan.releases) + ROUNDS * STEPS
    lost = [charge.hash not in used.answers for charge in charges]
    assert sum(lost) <= len(kills)
    unbroken = play(monkeypatch, tmp_path, [used.answers.get(charge.hash) for charge in charges], **options)
    for found, expected in zip(weights(resumed), weights(unbroken), strict=True):
        np.testing.assert_array_equal(found, expected)
    for found, expected in zip(resumed.optimizer.variables, unbroken.optimizer.variables, strict=True):
        np.testing.assert_array_equal(found.numpy(), expected.numpy())
    np.testing.assert_allclose(resumed.losses, unbroken.history.history["loss"], rtol=1e-6)
