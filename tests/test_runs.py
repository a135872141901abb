"""What a run leaves: a private side nobody else can read, and a release that is whole or absent."""

import json
import shlex
import stat
import sys
from contextlib import redirect_stdout

import numpy as np
import pytest
import tensorflow as tf
from conftest import images_and_labels
from recomputed import recomputed_epsilon

import tf_dp2vae.runs as runs
import train
from tf_dp2vae.accounting import BudgetExceededError, Event
from tf_dp2vae.checkpoints import Phase
from tf_dp2vae.ledger import Ledger
from tf_dp2vae.runs import RunFolder
from tf_dp2vae.statement import GIVEN_ENCODER
from tf_dp2vae.validation import InvalidInputError

SMALL = """
--steps 4 --rounds 2 --batch-size 8 --latent-dim 2 --width 2 --physical-batch-size 16 --num-classes 3 --refine-steps 2
"""


def run_train(folder, *flags, pretraining=("--pretrain-steps", "2", "--sleep-steps", "1")):
    images, labels = images_and_labels(40)
    np.savez(folder / "data.npz", x_train=images, y_train=labels)
    chosen = ["--data", str(folder / "data.npz"), "--runs", str(folder / "runs"), "--name", "run"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py", *chosen, *shlex.split(SMALL), *pretraining, *flags])
        with (folder / "printed").open("w") as printed, redirect_stdout(printed):
            train.main()
    return folder / "runs" / "run"


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return run_train(tmp_path_factory.mktemp("sound"), "--accountant", "rdp", "--epsilon", "2")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    way = ("--pretrain", "unprotected", "--pretrain-epochs", "1")
    return run_train(tmp_path_factory.mktemp("published"), "--ema", "0", pretraining=way)


def statement(run):
    return json.loads((run / "release" / "privacy.json").read_text())


def test_what_is_printed_last_forbids_what_the_statement_forbids(sound, published):
    for run, words in ((sound, "May be published: "), (published, "Do NOT publish: ")):
        printed = (run.parent.parent / "printed").read_text()
        assert f"{run / 'release'}" in next(line for line in printed.splitlines() if line.startswith(words))
        assert ("May be published" in printed) == (run is sound)


def test_private_side_is_closed_and_says_so(sound):
    assert stat.S_IMODE((sound / "private").stat().st_mode) == 0o700
    assert "Do not publish" in (sound / "private" / "README.md").read_text()
    names = {path.name for path in (sound / "private").iterdir()}
    assert {"README.md", "ledger.jsonl", "config.json", "model.keras", "history.csv"} <= names
    assert len((sound / "private" / "history.csv").read_text().splitlines()) == 1 + 4


def test_release_holds_what_may_be_published_and_nothing_else(sound):
    allowed = {"sampler", "privacy.json", "privacy.md", "samples.png", "SHA256SUMS"}
    names = {path.name for path in (sound / "release").iterdir()}
    assert names == allowed
    assert {path.name for path in sound.iterdir()} == {"release", "private"}


def test_release_sampler_samples_each_class(sound):
    sampler = tf.saved_model.load(str(sound / "release" / "sampler"))
    for label in range(3):
        images = sampler.sample(4, label, 7).numpy()
        assert images.shape == (4, 8, 8, 1) and images.dtype == np.float32
        assert images.min() >= 0 and images.max() <= 1
    assert set(sampler.sample_labels(50, 1).numpy()) <= {0, 1, 2}


def test_statement_can_be_recomputed_from_its_own_numbers(sound):
    entry = statement(sound)
    assert entry["end_to_end"] is True and entry["accountant"] == "rdp" and entry["num_records"] == 40
    assert entry["epsilon"] == entry["epsilon_rdp"]
    assert "replaced by a null record" in entry["adjacency"]
    assert 0.99 * 2 <= entry["epsilon"] <= 2
    for accountant in ("rdp", "pld"):
        assert recomputed_epsilon(entry["events"], entry["delta"], accountant) == pytest.approx(
            entry[f"epsilon_{accountant}"], rel=5e-3
        )
    assert f"({entry['epsilon']:.4f}, 1e-05)" in (sound / "release" / "privacy.md").read_text()


def test_events_are_those_of_the_ledger(sound):
    events = statement(sound)["events"]
    kept = [(e["mechanism"], e["type"], e["sampling_rate"], e["count"]) for e in events]
    assert kept == [
        ("class statistics", "gaussian", 1.0, 1),
        ("dream moments", "gaussian", 1.0, 1),
        ("clipped gradient sum", "poisson_sampled_gaussian", 8 / 40, 4),
        ("latent moments", "gaussian", 1.0, 1),
        ("feature means", "gaussian", 1.0, 1),
    ]
    ledger = Ledger(sound / "private" / "ledger.jsonl", 40)
    assert [event.noise_multiplier for event in ledger.events] == [e["noise_multiplier"] for e in events]
    ledger.close()


def test_statement_holds_no_times_and_no_paths(sound):
    text = (sound / "release" / "privacy.json").read_text() + (sound / "release" / "privacy.md").read_text()
    for word in (str(sound.parent.parent), sound.parent.parent.name, "runs/", "/private", "npz", 'time"', "date"):
        assert word not in text


def test_as_published_states_nothing_end_to_end(published):
    entry = statement(published)
    assert entry["end_to_end"] is False
    assert all(entry[name] is None for name in entry if name.startswith("epsilon"))
    given = entry["given_encoder"]
    assert given["means"] == GIVEN_ENCODER and "no guarantee" in given["means"]
    for accountant in ("rdp", "pld"):
        assert recomputed_epsilon(entry["events"], entry["delta"], accountant) == pytest.approx(
            given[f"epsilon_{accountant}"], rel=5e-3
        )
    words = (published / "release" / "privacy.md").read_text()
    assert "NO END-TO-END GUARANTEE" in words and GIVEN_ENCODER in words
    assert "differentially private**" not in words


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "runs", "one")


def test_nothing_on_disk_before_it_is_opened(tmp_path, folder):
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("refusal", [InvalidInputError("no"), BudgetExceededError("no"), KeyboardInterrupt()])
def test_refused_run_leaves_nothing(tmp_path, folder, refusal):
    with pytest.raises(type(refusal)), folder.opened(40, None):
        raise refusal
    assert not list(tmp_path.iterdir())


def test_run_that_was_charged_keeps_its_ledger_when_it_ends_early(folder):
    with pytest.raises(KeyboardInterrupt), folder.opened(40, None) as ledger:
        ledger.charge(Event("a", 2.0))
        raise KeyboardInterrupt
    assert not folder.release.exists()
    assert Ledger(folder.private / "ledger.jsonl", 40).events == (Event("a", 2.0),)


@pytest.mark.parametrize("phase, step", [(Phase.PRETRAINING, 3), (Phase.PRIVATE, 0)])
def test_run_that_was_trained_and_not_charged_may_go_on(folder, phase, step):
    """Pre-training on public data charges nothing and takes minutes."""
    with pytest.raises(KeyboardInterrupt), folder.opened(40, None):
        folder.checkpoints.progress.phase, folder.checkpoints.progress.step = phase, step
        raise KeyboardInterrupt
    assert (folder.private / "ledger.jsonl").is_file() and not folder.release.exists()


def test_refused_run_leaves_other_runs_alone(tmp_path):
    (tmp_path / "runs" / "earlier").mkdir(parents=True)
    with pytest.raises(InvalidInputError), RunFolder(tmp_path / "runs", "one").opened(40, None):
        raise InvalidInputError("no")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["earlier"]


def test_run_that_finds_the_ledger_taken_leaves_it_to_who_took_it(tmp_path, folder, monkeypatch):
    shared, other = tmp_path / "ledger", []

    def meanwhile(*arguments):
        other.append(Ledger(shared, 60, shared=True))

    monkeypatch.setattr(runs, "write_atomically", meanwhile)
    with pytest.raises(InvalidInputError, match="in use"), folder.opened(60, shared, {}):
        pass
    assert shared.exists()
    other[0].charge(Event("a", 2.0))
    other[0].close()
    assert Ledger(shared, 60, shared=True).charges


def test_shared_ledger_is_lent_and_closed(tmp_path, folder):
    shared = tmp_path / "ledger"
    with folder.opened(40, shared) as ledger:
        assert ledger.shared
        ledger.charge(Event("a", 2.0))
    assert Ledger(shared, 40).events == (Event("a", 2.0),)


def test_release_appears_whole_or_not_at_all(folder, trained, monkeypatch):
    model, _ = trained

    def broken(*arguments):
        raise OSError("disk full")

    with folder.opened(48, None):
        with monkeypatch.context() as patch:
            patch.setattr("tf_dp2vae.figures.sample_grid", broken)
            with pytest.raises(OSError, match="disk full"):
                folder.write_release(model)
        assert not folder.release.exists()
        order = []
        replace = runs.os.replace
        monkeypatch.setattr(
            runs.os, "replace", lambda a, b: (order.append(set(p.name for p in a.iterdir())), replace(a, b))
        )
        folder.write_release(model)
    assert {"sampler", "privacy.json", "privacy.md", "samples.png"} <= order[0]
    assert folder.release.is_dir() and {path.name for path in folder.path.iterdir()} == {"release", "private"}


@pytest.mark.parametrize("name", ["scans [2024]", "a\\b", "da\udcff", "two\nlines"])
def test_places_that_tensorflow_cannot_read_are_refused_before_anything_is_spent(tmp_path, name):
    for root, own in ((tmp_path, name), (tmp_path / name, "run")):
        with pytest.raises(
            InvalidInputError, match=r"--name, --runs.*for (\[|\\\\|\\udcff|\\n) in it. Choose a folder"
        ):
            RunFolder(root, own)
    assert not list(tmp_path.iterdir())
    RunFolder(tmp_path, "scans (2024) ärzte*?{}\u3000\u200c")
