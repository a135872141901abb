"""`python -m tf_dp2vae.audit`: agrees with a sound run, finds what was tampered with or leaks, refuses what is no run."""

import json
import shutil
import sys

import numpy as np
import pytest
from conftest import CLASSES, SHAPE, images_and_labels, some_records
from test_runs import run_train

from tf_dp2vae import accounting
from tf_dp2vae.accounting import Event
from tf_dp2vae.audit import __main__ as audit
from tf_dp2vae.audit.finished import canary_bound, membership_bound
from tf_dp2vae.audit.image_canaries import FILE, ImageCanaries
from tf_dp2vae.checksums import NAME
from tf_dp2vae.evaluation.real import RealImages
from tf_dp2vae.ledger import Ledger
from tf_dp2vae.validation import InvalidInputError

CLAIM = {"epsilon": 1.0, "delta": 1e-5, "end_to_end": True}
CANARIES = 60


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return run_train(tmp_path_factory.mktemp("audited"), "--audit-canaries", str(CANARIES))


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the run, and data with a test set beside it."""
    images, labels = images_and_labels(240)
    np.savez(tmp_path / "data.npz", x_train=images[:40], y_train=labels[:40], x_test=images[40:], y_test=labels[40:])
    return shutil.copytree(trained, tmp_path / "run")


def audited(run, monkeypatch, capsys):
    """Exit code, what was printed, and audit.json."""
    arguments = [str(run), "--samples", "200", "--data", str(run.parent / "data.npz"), "--num-classes", str(CLASSES)]
    monkeypatch.setattr(sys, "argv", ["audit", *arguments])
    with pytest.raises(SystemExit) as left:
        audit.main()
    captured, file = capsys.readouterr(), run / "private" / "audit" / "audit.json"
    return left.value.code, captured, json.loads(file.read_text()) if file.is_file() else None


def edit(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    (file.parent / NAME).unlink(missing_ok=True)  # whoever changes a file can change its checksum


def test_sound_run_is_not_refuted_and_every_part_is_there(run, monkeypatch, capsys):
    code, captured, found = audited(run, monkeypatch, capsys)
    assert code == 0 and not found["refuted"] and "Nothing that the run states was refuted" in captured.out
    assert found["accounting"]["disagree"] == [] and found["accounting"]["epsilon_pld"] < found["epsilon"] <= 1
    assert found["canaries"]["canaries"] == CANARIES
    # 40 records beside as many test images; one half of them fits the ratio, the other is guessed.
    assert found["membership"]["likelihood_ratio"]["canaries"] == 20
    assert "holds what is stated" in captured.out


def test_run_with_canaries_says_so_and_counts_their_places_in_n(run):
    statement, words = (run / "release" / name for name in ("privacy.json", "privacy.md"))
    found = json.loads(statement.read_text())
    assert found["audit_canaries"] == CANARIES and found["num_records"] == 40 + CANARIES
    assert f"{CANARIES} are canaries of an audit" in words.read_text()
    canaries = ImageCanaries.read(run / "private")
    assert len(canaries.included) == CANARIES and 0 < canaries.included.sum() < CANARIES
    assert not list((run / "release").rglob(FILE)), "the coins are private"


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.update(epsilon_pld=s["epsilon_pld"] * 0.99),
        lambda s: s.update(epsilon=s["epsilon"] * 0.9),
        lambda s: s["events"][0].update(noise_multiplier=2 * s["events"][0]["noise_multiplier"]),
        lambda s: s["events"].pop(),
        lambda s: s.update(trials=2),
    ],
)
def test_statement_that_was_made_prettier_is_found_out(run, monkeypatch, capsys, change):
    edit(run / "release" / "privacy.json", change)
    code, captured, found = audited(run, monkeypatch, capsys)
    assert code == 1 and found["refuted"] and found["accounting"]["disagree"]
    assert "SOMETHING THAT THE RUN STATES IS UNTRUE" in captured.out


def test_statement_that_agrees_with_itself_and_not_with_the_ledger_is_found_out(run, monkeypatch, capsys):
    def prettier(statement):
        statement["events"][0]["noise_multiplier"] *= 2
        for accountant in ("pld", "rdp"):
            events = [Event.from_json(event) for event in statement["events"]]
            statement["epsilon"] = accounting.epsilon(events, statement["delta"], accountant)
            statement[f"epsilon_{accountant}"] = statement["epsilon"]

    edit(run / "release" / "privacy.json", prettier)
    code, _, found = audited(run, monkeypatch, capsys)
    assert code == 1 and found["accounting"]["disagree"] == ["the ledger"]


@pytest.mark.parametrize(
    "change, words",
    [
        ({"num_records": 5}, "the number of records"),
        ({"epsilon": None}, "whether a guarantee holds"),
        ({"unit_column": "patient", "max_records_per_unit": 2, "num_units": 9}, "the unit"),
    ],
)
def test_statement_about_other_records_than_the_ledger_is_found_out(run, monkeypatch, capsys, change, words):
    edit(run / "release" / "privacy.json", lambda statement: statement.update(change))
    code, captured, found = audited(run, monkeypatch, capsys)
    assert code == 1 and found["accounting"]["disagree"] == ["the ledger"]
    assert f"DISAGREES with the statement about {words}" in captured.out


@pytest.mark.parametrize("shared", [False, True])
def test_charge_that_no_statement_names_is_found_out_on_a_run_s_own_ledger(run, monkeypatch, capsys, shared):
    ledger = Ledger(run / "private" / "ledger.jsonl")
    ledger.charge(Event("clipped gradient sum", 3.0, 0.5))
    ledger.close()
    edit(run / "release" / "privacy.json", lambda statement: statement.update(shared_ledger=shared))
    code, captured, found = audited(run, monkeypatch, capsys)
    assert (code, found["accounting"]["disagree"]) == ((0, []) if shared else (1, ["the ledger"]))
    assert ("what other runs spent since" in captured.out) is shared


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda run: shutil.rmtree(run / "release"), "is no run"),
        (lambda run: (run / "release" / "privacy.json").write_text("{"), "damaged"),
        (lambda run: edit(run / "release" / "privacy.json", lambda s: s["events"][0].pop("count")), "damaged"),
        (lambda run: edit(run / "release" / "privacy.json", lambda s: s.update(trials="many")), "trials='many'"),
        (lambda run: (run / "private" / FILE).write_bytes(b"PK\x03\x04 no archive"), "damaged"),
        (lambda run: ImageCanaries.draw(some_records(), 7, 0).write(run / "private"), "of another run"),
        (lambda run: (run / "private" / "config.json").write_text("[1"), "damaged"),
    ],
)
def test_damage_is_refused_in_one_line(run, monkeypatch, capsys, damage, words):
    damage(run)
    code, captured, found = audited(run, monkeypatch, capsys)
    assert code == 2 and words in captured.err and captured.err.count("\n") == 1 and found is None


def test_release_that_copies_the_canaries_it_was_given_is_refuted(tmp_path):
    canaries = ImageCanaries.draw(some_records(), 300, 0)
    canaries.write(tmp_path)
    copies = canaries.images[canaries.included] / np.float32(255), canaries.labels[canaries.included]
    statement = {**CLAIM, "audit_canaries": 300}
    assert canary_bound(copies, tmp_path, statement).refuted
    random = np.random.default_rng(0)
    fresh = random.random((300, *SHAPE), dtype=np.float32), random.integers(0, CLASSES, 300)
    assert not canary_bound(fresh, tmp_path, statement).refuted


def test_release_that_copies_its_records_is_refuted_and_a_shift_between_the_sets_is_not_blamed_on_it():
    (records, labels), (others, other_labels) = images_and_labels(600), images_and_labels(1200, seed=1)
    copies = records / np.float32(255), labels
    real = RealImages("planted", (records, labels), (others, other_labels), CLASSES)
    assert membership_bound(copies, real, 0, CLAIM).refuted
    shifted = RealImages("shifted", (records, labels), (others // 2, other_labels), CLASSES)
    assert not membership_bound(copies, shifted, 0, CLAIM).refuted


def test_coins_are_fair_and_images_hang_on_the_seed_alone():
    draws = [ImageCanaries.draw(some_records(), 400, 5) for _ in range(2)]
    np.testing.assert_array_equal(draws[0].images, draws[1].images)
    assert not np.array_equal(draws[0].included, draws[1].included)
    assert 130 < draws[0].included.sum() < 270 and draws[0].images.shape == (400, *SHAPE)


def test_canaries_without_their_file_are_said_to_be_missing(tmp_path):
    finding = canary_bound(images_and_labels(5), tmp_path, {**CLAIM, "audit_canaries": 9})
    assert not finding.refuted and "is not there" in finding.part.rows[0][1]


def test_canaries_that_do_not_fit_their_coins_are_refused(tmp_path):
    canaries = ImageCanaries.draw(some_records(), 10, 0)
    canaries._replace(included=canaries.included[:5]).write(tmp_path)
    with pytest.raises(InvalidInputError, match="do not fit together"):
        ImageCanaries.read(tmp_path)
