"""A leak of each kind is planted in a release, and the scan that export runs must find it."""

import base64
import csv
import json
import platform
import shutil
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import tensorflow as tf
from conftest import DREAMS, images_and_labels, tiny_model

from tf_dp2vae import figures
from tf_dp2vae.byte_runs import ByteRuns, records_as_runs, variables_as_runs
from tf_dp2vae.randomness import InsecureSeed
from tf_dp2vae.records import Records
from tf_dp2vae.release_scan import ReleaseRefusedError, refuse_leaks, secrets_of
from tf_dp2vae.runs import RunFolder
from tf_dp2vae.sampler import Sampler

IMAGES, LABELS = images_and_labels(48, seed=3)
LOSS = 143.2718


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model trained with Adam and weight averages, its records, its run with a release and a private history."""
    root = tmp_path_factory.mktemp("scanned")
    model = tiny_model(pretraining=DREAMS, prior=None, entropy=InsecureSeed(73_519))
    records = Records(IMAGES, LABELS, 3)
    model.fit(records, batch_size=12, epochs=1, steps_per_epoch=3, verbose=0)
    run = RunFolder(root / "runs", "run")
    with run.opened(48, None):
        with (run.private / "history.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["step", "loss", "epsilon"], [1, LOSS, 0.3]])
        run.write_release(model, records)
    return model, records, run


@pytest.fixture
def release(made, tmp_path):
    model, records, run = made
    shutil.copytree(run.release, tmp_path / "release")
    return tmp_path / "release"


def refusal(made, release):
    model, records, run = made
    with pytest.raises(ReleaseRefusedError, match="was not published") as refused:
        refuse_leaks(release, secrets_of(model, records, run.private))
    assert "\n" not in str(refused.value)
    return str(refused.value)


def append(file, content):
    file.write_bytes(file.read_bytes() + content)


def change_json(release, **changes):
    file = release / "privacy.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_a_clean_release_passes(made, release):
    model, records, run = made
    refuse_leaks(release, secrets_of(model, records, run.private))


def longest(variables):
    """The longest variable without repeated numbers: rows of zeros would tell nothing."""
    values = [variable.numpy() for variable in variables]
    return max((value for value in values if len(np.unique(value)) == value.size), key=np.size)


PLANTS = {
    "a file more": (lambda m, r: (r / "model.keras").write_bytes(b"x"), "model.keras is no file"),
    "an asset": (lambda m, r: (r / "sampler" / "assets" / "a").write_text("x"), "assets/a is no file"),
    "a link": (lambda m, r: (r / "NOT-PRIVATE.md").symlink_to(r / "privacy.md"), "NOT-PRIVATE.md is a link"),
    "encoder weights in the graph": (
        lambda m, r: append(r / "sampler" / "saved_model.pb", longest(m.encoder.variables).tobytes()),
        "saved_model.pb holds encoder weights",
    ),
    "a few encoder weights": (
        lambda m, r: append(r / "sampler" / "saved_model.pb", longest(m.encoder.variables).ravel()[8:24].tobytes()),
        "saved_model.pb holds encoder weights",
    ),
    "optimizer state": (
        lambda m, r: append(r / "sampler" / "saved_model.pb", longest(m.optimizer.variables[2:]).tobytes()),
        "saved_model.pb holds optimizer state",
    ),
    "a record as bytes": (
        lambda m, r: append(r / "sampler" / "saved_model.pb", IMAGES[17].tobytes()),
        "saved_model.pb holds a record",
    ),
    "a record as floats": (
        lambda m, r: append(r / "sampler" / "saved_model.pb", (IMAGES[5] / 255).astype(np.float32).tobytes()),
        "saved_model.pb holds a record",
    ),
    "a record as a picture": (
        lambda m, r: matplotlib.image.imsave(
            r / "samples.png", IMAGES[9, ..., 0], cmap="gray", vmin=0, vmax=255, metadata={"Software": None}
        ),
        "samples.png holds a record's pixels",
    ),
    "records among samples": (
        lambda m, r: figures.image_rows((IMAGES[:12] / 255).reshape(3, 4, 8, 8, 1), r / "samples.png"),
        "samples.png holds a record's pixels",
    ),
    "a picture's comment": (
        lambda m, r: matplotlib.image.imsave(r / "samples.png", np.zeros((8, 8)), metadata={"Author": "me"}),
        "samples.png holds more than pixels",
    ),
    "bytes after a picture": (lambda m, r: append(r / "samples.png", b"more"), "more than pixels (rest)"),
    "a path": (
        lambda m, r: append(r / "sampler" / "saved_model.pb", str(Path(figures.__file__)).encode()),
        "saved_model.pb holds the path",
    ),
    "the home folder": (lambda m, r: append(r / "privacy.md", f"kept in {Path.home()}/x".encode()), "privacy.md holds"),
    "the seed of the noise": (lambda m, r: append(r / "privacy.md", b"seed 73519 "), "seed of the noise"),
    "the seed under an old key": (lambda m, r: change_json(r, public_seed=73519), "privacy.json holds the seed"),
    "a private metric in words": (lambda m, r: append(r / "privacy.md", b"ELBO 143.272."), "private metric (143.272)"),
    "a private metric in JSON": (lambda m, r: change_json(r, delta=LOSS), "private metric (143.2718)"),
    "a key of its own": (lambda m, r: change_json(r, final_loss=1), "the key final_loss"),
    "a nested key": (lambda m, r: change_json(r, versions={"host": "x"}), "the key host"),
    "weights as text": (
        lambda m, r: append(r / "privacy.md", base64.b64encode(longest(m.encoder.variables).tobytes()[:300])),
        "which is no text",
    ),
}


@pytest.mark.parametrize("plant, words", PLANTS.values(), ids=PLANTS)
def test_planted_leak_is_found(made, release, plant, words):
    plant(made[0], release)
    assert words in refusal(made, release)


def test_name_of_the_machine_is_found(made, release, monkeypatch):
    monkeypatch.setattr(platform, "node", lambda: "build-7")
    append(release / "privacy.md", b"made on build-7 ")
    assert "the name of this machine" in refusal(made, release)


@pytest.mark.parametrize("name", ["n1", "c3", "gp-7"])
def test_short_name_of_the_machine_is_found_in_texts_and_not_by_chance_among_weights(made, release, monkeypatch, name):
    model, records, run = made
    monkeypatch.setattr(platform, "node", lambda: name)
    chance = np.random.default_rng(0).normal(size=300_420).astype(np.float32).tobytes()
    append(release / "sampler" / "saved_model.pb", chance + f"({name})".encode())
    refuse_leaks(release, secrets_of(model, records, run.private))
    for text in ("privacy.md", "privacy.json"):
        content = (release / text).read_bytes()
        (release / text).write_bytes(content.replace(b"a seed", f"a seed on {name}".encode()))
        assert f"{text} holds the name of this machine" in refusal(made, release)
        (release / text).write_bytes(content)


def test_long_name_of_the_machine_is_found_in_the_graph(made, release, monkeypatch):
    monkeypatch.setattr(platform, "node", lambda: "build-7")
    append(release / "sampler" / "saved_model.pb", b"\x00build-7\x00")
    assert "saved_model.pb holds the name of this machine" in refusal(made, release)


def test_short_folder_is_found_among_weights(made, release, monkeypatch):
    monkeypatch.setattr("os.path.expanduser", lambda _: "/r007")
    append(release / "sampler" / "saved_model.pb", b" /r007 ")
    assert "saved_model.pb holds the path" in refusal(made, release)


def test_sampler_that_owns_the_encoder_is_found(made, release):
    model, _, _ = made
    sampler = Sampler(model.decoder, model.latent_prior, model.contrast, 3)
    sampler.kept = model.encoder
    shutil.rmtree(release / "sampler")
    tf.saved_model.save(sampler, str(release / "sampler"))
    found = refusal(made, release)
    assert "kept/_operations" in found and "a variable of no released part" in found
    assert "holds encoder weights" in found


def test_variable_of_the_sampler_that_is_not_the_decoders_is_found(made, release):
    model, _, _ = made
    sampler = Sampler(model.decoder, model.latent_prior, model.contrast, 3)
    sampler.mean_loss = tf.Variable([143.0])
    shutil.rmtree(release / "sampler")
    tf.saved_model.save(sampler, str(release / "sampler"))
    assert "mean_loss [1], a variable of no released part" in refusal(made, release)


def test_export_that_fails_the_scan_publishes_nothing(made, tmp_path, monkeypatch):
    """A leak in the exporting code itself: no release, no unfinished one, one line."""
    model, records, _ = made
    run = RunFolder(tmp_path / "runs", "run")
    monkeypatch.setattr(
        "tf_dp2vae.figures.sample_grid", lambda sampler, file, *_: np.save(file.with_suffix(".npy"), IMAGES)
    )
    with run.opened(48, None) as ledger:
        ledger.charge(model.plan.step)
        with pytest.raises(ReleaseRefusedError, match="samples.npy is no file of a release"):
            run.write_release(model, records)
    assert {path.name for path in run.path.iterdir()} == {"private"}


# --- the search itself ---


@pytest.mark.parametrize("length", [8, 16, 32])
@pytest.mark.parametrize("position", [0, 1, 4095, "end"])
def test_runs_are_found_wherever_they_stand_and_nowhere_else(length, position, monkeypatch):
    monkeypatch.setattr("tf_dp2vae.byte_runs._PIECE", 512)
    random = np.random.default_rng(length)
    runs = ByteRuns("it", random.integers(0, 256, (300, length), dtype=np.uint8))
    content = bytearray(random.integers(0, 256, 5000, dtype=np.uint8).tobytes())
    assert not runs.found_in(bytes(content))
    start = 5000 - length if position == "end" else position
    content[start : start + length] = runs.runs[211].tobytes()
    assert runs.found_in(bytes(content))
    content[start + length // 2] ^= 1
    assert not runs.found_in(bytes(content))
    assert not runs.found_in(b"") and not ByteRuns("it", runs.runs[:0]).found_in(bytes(content))


def test_what_may_be_published_is_not_searched_for():
    weights = np.random.default_rng(0).normal(size=(10, 16)).astype(np.float32)
    assert len(variables_as_runs("it", [weights], [weights]).runs) == 0
    assert len(variables_as_runs("it", [weights], []).runs) == 20
    assert len(variables_as_runs("it", [np.zeros((10, 16), np.float32)], []).runs) == 0


def test_plain_images_tell_nothing():
    in_bytes, in_pictures = records_as_runs(np.zeros((5, 28, 28, 1), np.uint8))
    assert all(len(runs.runs) == 0 for runs in in_bytes + in_pictures)
