"""Everything released is a function of mechanism answers: shown by replay, and shown to fail where it is not."""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import pytest
from replay import Player, Recorder, ReplayMismatchError, SealedRecords

import tf_dp2vae
from tf_dp2vae import DP2VAE, DPAdam, Dreams, NoPretraining, NormalPrior, Public, Unprotected
from tf_dp2vae.baselines import NotPrivate, StatisticsAlone, build_linear_decoder
from tf_dp2vae.networks import build_decoder, build_encoder
from tf_dp2vae.records import Records
from tf_dp2vae.refinement import Refinement
from tf_dp2vae.runs import RunFolder

SHAPE, CLASSES, N = (8, 8, 1), 3, 240


def arrays(seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = random.integers(0, CLASSES, N).astype(np.int32)
    ramp = np.linspace(0, 200, 64).reshape(1, 8, 8, 1)
    images = ramp * (1 + labels[:, None, None, None]) / CLASSES + random.integers(0, 55, (N, *SHAPE))
    return images.astype(np.uint8), labels


def neighbours() -> tuple[tuple, tuple]:
    """D, and D′ which differs from it in every record."""
    images, labels = arrays(1)
    return (images, labels), (255 - images, (labels + 1) % CLASSES)


@dataclass
class Run:
    """One training and its release."""

    model: DP2VAE
    folder: RunFolder


def train(records: Records, root: Path, pretraining, calls=None, prior=None, callbacks=(), after_release=None) -> Run:
    """Records the calls, or plays `calls`."""
    keras.utils.clear_session()  # layers without a name are numbered anew, as in a process of their own
    linear = isinstance(pretraining, StatisticsAlone)
    model = DP2VAE(
        build_encoder(SHAPE, 4, CLASSES, 4, seed=0),
        build_linear_decoder(SHAPE, 4, CLASSES) if linear else build_decoder(SHAPE, 4, CLASSES, 4, seed=1),
        pretraining=pretraining,
        prior=prior,
        refinement=None if pretraining.is_whole_training else Refinement(steps=4, candidates=2),
        physical_batch_size=32,
    )
    model.mechanisms = Recorder(model) if calls is None else Player(model, calls)
    model.compile(DPAdam(learning_rate=0.01, use_ema=True, ema_momentum=0.5), run_eagerly=True)
    model.fit(records, batch_size=24, epochs=2, steps_per_epoch=2, verbose=0, callbacks=list(callbacks))
    if calls is not None:
        model.mechanisms.finish()
    folder = RunFolder(root, "recorded" if calls is None else "replayed")
    with folder.opened(records.num_records, None):
        folder.write_release(model)
    if after_release is not None:
        after_release(model, folder.release)
    return Run(model, folder)


def assert_same_release(first: Path, second: Path) -> None:
    """To the last byte, the sampler's graph included."""
    names = [sorted(path.relative_to(folder) for path in folder.rglob("*")) for folder in (first, second)]
    assert names[0] == names[1]
    for name in names[0]:
        assert (first / name).is_dir() or (first / name).read_bytes() == (second / name).read_bytes(), name


def replay(tmp_path: Path, make_pretraining, sealed: bool = True, **options) -> None:
    """Raises unless the release is a function of the answers."""
    ours, theirs = neighbours()
    first = train(Records(*ours, CLASSES), tmp_path, make_pretraining(), **options)
    kind = SealedRecords if sealed else Records
    calls = first.model.mechanisms.calls
    second = train(kind(*theirs, CLASSES), tmp_path, make_pretraining(), calls=calls, **options)
    assert_same_release(first.folder.release, second.folder.release)


def dreams(**changes) -> Dreams:
    return Dreams(**{"steps": 6, "sleep_steps": 3, **changes})


def statistics() -> StatisticsAlone:
    return StatisticsAlone(components=4)


def public() -> Public:
    return Public(steps=6, sleep_steps=3, data=Records(*arrays(99), CLASSES))


@pytest.mark.parametrize("make", [dreams, public, NoPretraining, statistics])
def test_release_is_post_processing_of_the_answers(tmp_path, make):
    replay(tmp_path, make)


def test_published_pretraining_is_caught_at_the_first_gradient(tmp_path):
    with pytest.raises(ReplayMismatchError, match="gradient sum.*other inputs"):
        replay(tmp_path, lambda: Unprotected(epochs=1), sealed=False)


def test_published_pretraining_reads_outside_a_mechanism(tmp_path):
    with pytest.raises(ReplayMismatchError, match="outside a mechanism"):
        replay(tmp_path, lambda: Unprotected(epochs=1))


def test_training_without_privacy_reads_outside_a_mechanism(tmp_path):
    with pytest.raises(ReplayMismatchError, match="outside a mechanism"):
        replay(tmp_path, lambda: NotPrivate(epochs=1))


class ExactFrequencies(Dreams):
    """Planted leak: label frequencies counted without noise."""

    def run(self, model, records):
        super().run(model, records)
        with records.opened() as (_, labels):
            model.latent_prior.frequencies.assign(np.bincount(labels, minlength=CLASSES) / N)


class WeightsFromRecords(Dreams):
    """Planted leak: a bias set to the records' brightness before training."""

    def run(self, model, records):
        with records.opened() as (images, _):
            bias = model.decoder.trainable_variables[-2]
            bias.assign(np.full(bias.shape, images.mean() / 255))
        super().run(model, records)


@pytest.mark.parametrize("leak", [ExactFrequencies, WeightsFromRecords])
def test_planted_reads_are_caught_by_what_follows(tmp_path, leak):
    with pytest.raises(ReplayMismatchError, match="other inputs"):
        replay(tmp_path, lambda: leak(steps=6, sleep_steps=3), sealed=False)


@pytest.mark.parametrize("leak", [ExactFrequencies, WeightsFromRecords])
def test_planted_reads_are_caught_by_the_seal(tmp_path, leak):
    with pytest.raises(ReplayMismatchError, match="outside a mechanism"):
        replay(tmp_path, lambda: leak(steps=6, sleep_steps=3))


def test_stop_on_a_private_loss_is_caught(tmp_path):
    ours, theirs = neighbours()
    losses = []

    class Stop(keras.callbacks.Callback):
        """Planted leak: goes on only while the loss is the first run's."""

        def on_train_batch_end(self, batch, logs=None):
            if len(losses) < 4:
                losses.append(float(logs["loss"]))
            self.model.stop_training = float(logs["loss"]) not in losses

    first = train(Records(*ours, CLASSES), tmp_path, dreams(), callbacks=[Stop()])
    assert len(losses) == 4, "the first run must not stop"
    with pytest.raises(ReplayMismatchError):
        train(Records(*theirs, CLASSES), tmp_path, dreams(), calls=first.model.mechanisms.calls, callbacks=[Stop()])


def test_private_number_in_the_release_is_caught(tmp_path):
    def publish_loss(model, release):
        file = release / "privacy.json"
        statement = json.loads(file.read_text())
        loss = float(model.history.history["loss"][-1])
        file.write_text(json.dumps({**statement, "final_loss": loss}))

    with pytest.raises(AssertionError, match="privacy.json"):
        replay(tmp_path, dreams, after_release=publish_loss)


def test_prior_without_release_replays_too(tmp_path):
    replay(tmp_path, dreams, prior=NormalPrior())


MAY_OPEN = {
    "mechanisms.py": "the one door",
    "sampling.py": "the input pipeline",
    "records.py": "checks, joins and fingerprints of its own, scaling of public data",
    "evaluation/real.py": "private-side metrics",
    "release_scan.py": "looks for records in the release",
}


def test_only_the_door_and_the_pipeline_open_records():
    package = Path(tf_dp2vae.__file__).parent
    openers = set()
    for file in package.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Attribute):
                continue
            inside = node.attr in ("_images", "_labels") and ast.unparse(node.value) != "self"
            if node.attr == "opened" or inside:
                openers.add(str(file.relative_to(package)))
    assert openers == set(MAY_OPEN)
