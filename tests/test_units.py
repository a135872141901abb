"""The unit of privacy: one person's records are bounded, drawn together, and hidden together."""

import json
import shlex
import sys

import numpy as np
import pytest
from conftest import CLASSES, DREAMS, SHAPE, Silence, images_and_labels, some_records, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from recomputed import recomputed_epsilon
from scipy import stats

import train
from tf_dp2vae import datasets
from tf_dp2vae.accounting import Event, Privacy
from tf_dp2vae.contrast import mean_energy
from tf_dp2vae.dreams import frequency_basis
from tf_dp2vae.evaluation.real import real_images
from tf_dp2vae.evaluation.release import read_release
from tf_dp2vae.ledger import Ledger
from tf_dp2vae.mechanisms import Mechanisms
from tf_dp2vae.priors import GaussianPrior, NormalPrior
from tf_dp2vae.randomness import InsecureSeed, SystemEntropy
from tf_dp2vae.records import NULL, Records
from tf_dp2vae.refinement import Refinement, Target
from tf_dp2vae.sampling import PoissonSource
from tf_dp2vae.units import bound_per_unit
from tf_dp2vae.validation import InvalidInputError

UNLIKELY = 1e-6


def of_persons(ids, most, seed=0):
    """Records whose first pixel is their position, bounded."""
    images = np.zeros((len(ids), *SHAPE), np.uint8)
    images[:, 0, 0, 0] = np.arange(len(ids))
    labels = (np.arange(len(ids)) % CLASSES).astype(np.int32)
    return bound_per_unit(Records(images, labels, CLASSES), np.asarray(ids), "person", most, seed)


def positions(records):
    with records.opened() as (images, _):
        return images[:, 0, 0, 0].astype(int)


IDS = st.lists(st.integers(0, 9), min_size=1, max_size=60)


@settings(max_examples=80)
@given(ids=IDS, most=st.integers(1, 5), seed=st.integers(0, 5))
def test_at_most_k_of_each_person_are_kept_and_no_more_are_dropped(ids, most, seed):
    records, ids = of_persons(ids, most, seed), np.asarray(ids)
    kept = positions(records)
    assert np.all(np.diff(kept) > 0)
    for person in np.unique(ids):
        assert (ids[kept] == person).sum() == min(most, (ids == person).sum())
    assert records.num_records == len(ids) and records.num_units == len(np.unique(ids))


@settings(max_examples=60)
@given(ids=IDS, most=st.integers(1, 4), seed=st.integers(0, 5))
def test_bounding_what_is_bounded_changes_nothing(ids, most, seed):
    once = of_persons(ids, most, seed)
    again = bound_per_unit(once, np.asarray(ids), "person", most, seed)
    np.testing.assert_array_equal(positions(again), positions(once))
    np.testing.assert_array_equal(again._unit_of, once._unit_of)


@settings(max_examples=60)
@given(ids=IDS, most=st.integers(1, 4), data=st.data())
def test_what_is_kept_of_others_hangs_neither_on_a_persons_contents_nor_ids(ids, most, data):
    """Stable: give one person's records to somebody else, and the others keep the same ones."""
    ids = np.asarray(ids)
    person = data.draw(st.sampled_from(ids.tolist()))
    elsewhere = np.where(ids == person, 99, ids)
    kept, again = positions(of_persons(ids, most)), positions(of_persons(elsewhere, most))
    np.testing.assert_array_equal(kept[ids[kept] != person], again[ids[again] != person])


def test_text_may_tell_persons_apart():
    assert of_persons(["ann", "bo", "ann", "ann"], 2).num_units == 2


@settings(max_examples=30)
@given(ids=IDS, most=st.integers(1, 4), seed=st.integers(0, 99))
def test_a_draw_takes_all_kept_records_of_a_person_or_none(ids, most, seed):
    records, ids = of_persons(ids, most), np.asarray(ids)
    kept = positions(records)
    drawn = set(kept[drawn_by(PoissonSource(records, 0.5, 8, InsecureSeed(seed), num_weights=1))])
    for person in np.unique(ids):
        own = set(kept[ids[kept] == person])
        assert own <= drawn or not own & drawn


def test_each_person_is_drawn_with_probability_q_however_many_records():
    ids = np.repeat(np.arange(200), np.arange(200) % 5 + 1)
    records, rate, draws = of_persons(ids, 3), 0.2, 400
    kept_ids = ids[np.flatnonzero(np.isin(np.arange(len(ids)), kept_positions(ids, 3)))]
    source = PoissonSource(records, rate, 16, SystemEntropy(), num_weights=1)
    member = np.zeros((draws, 200), bool)
    for row in member:
        row[kept_ids[drawn_by(source)]] = True
    assert stats.binomtest(int(member.sum()), member.size, rate).pvalue > UNLIKELY
    by_person = np.square(member.sum(0) - draws * rate).sum() / (draws * rate * (1 - rate))
    assert UNLIKELY < stats.chi2.cdf(by_person, 200) < 1 - UNLIKELY


def drawn_by(source):
    """The records of one draw, without the places where there is none."""
    places = source.draw()
    return places[places != NULL]


def kept_positions(ids, most):
    """The kept positions of more than 256 records: labels carry what a pixel cannot."""
    images = np.zeros((len(ids), *SHAPE), np.uint8)
    records = Records(images, np.arange(len(ids), dtype=np.int32), len(ids))
    with bound_per_unit(records, ids, "person", most).opened() as (_, labels):
        return labels


@pytest.mark.parametrize("most", [1, 2, 4])
def test_noise_covers_the_worst_person(most):
    """A person of k white images moves the released vector by k·√(a² + b² + c²), exactly what the noise is sized for."""
    weights, bound = (0.5, 1.0, 2.0), 1.5
    basis, ids = frequency_basis(SHAPE, 8), np.repeat(np.arange(3), 4)
    white = np.full((12, *SHAPE), 255, np.uint8)
    labels = np.repeat(np.arange(3), 4).astype(np.int32)
    events = Event("class statistics", 1e-9), Event("class statistics", 2.0)

    def answer(images, event, entropy):
        records = bound_per_unit(Records(images, labels, CLASSES), ids, "person", most)
        return Mechanisms(Ledger(), entropy).class_statistics(records, event, basis, bound, weights)

    without = bound_per_unit(Records(white, labels, CLASSES), ids, "person", most)
    others = without._unit_of != 1
    gone = without.of_units(without._positions[others], without._unit_of[others], without.unit)
    less = Mechanisms(Ledger(), Silence()).class_statistics(gone, events[0], basis, bound, weights)
    full = answer(white, events[0], Silence())
    parts = [
        weights[0] * (full.counts - less.counts),
        weights[1] / bound * (full.sums - less.sums).ravel(),
        weights[2] / bound**2 * (full.seconds - less.seconds).ravel(),
    ]
    moved = np.linalg.norm(np.concatenate(parts))
    assert moved == pytest.approx(most * np.linalg.norm(weights), rel=1e-4)
    noised = answer(white, events[1], SystemEntropy())
    assert noised.count_noise == pytest.approx(2.0 * moved / weights[0], rel=1e-4)
    assert noised.sum_noise == pytest.approx(2.0 * moved * bound / weights[1], rel=1e-4)


def trained_on_persons(most, num=60, persons=20, batch_size: int | None = 5):
    images, labels = images_and_labels(num)
    records = bound_per_unit(Records(images, labels, CLASSES), np.arange(num) % persons, "person", most)
    model = tiny_model()
    model.fit(records, batch_size=batch_size, epochs=1, steps_per_epoch=2, verbose=0)
    return model


def test_training_samples_persons_and_sizes_noise_and_mean_for_them(tmp_path):
    model = trained_on_persons(3)
    assert model.plan.sampling_rate == 5 / 20
    assert model.optimizer.noise_multiplier == pytest.approx(3 * model.plan.noise_multiplier)
    assert model.optimizer.expected_batch_size == pytest.approx(5)
    entry = model.privacy_statement().to_json()
    assert entry["unit_column"] == "person" and entry["max_records_per_unit"] == 3
    assert entry["num_units"] == 20 and entry["num_records"] == 60
    assert "all records of one value of person" in entry["adjacency"]
    assert entry["events"][0]["noise_multiplier"] == model.plan.noise_multiplier
    words = str(model.privacy_statement())
    assert "any one person" in words and "at most 3 were used" in words and "several records of one person" not in words
    again = type(model).from_config(model.get_config())
    assert again.privacy_statement().to_json() == entry


def test_batch_that_nobody_asks_for_is_half_of_the_persons():
    assert trained_on_persons(3, batch_size=None).plan.sampling_rate == 1 / 2


@pytest.mark.parametrize("refined", [False, True])
def test_sums_over_persons_are_divided_by_the_records_that_are_kept(refined, monkeypatch):
    """150 persons have one record and 50 have nine, of which three are kept: 300 of 600."""
    asked = []
    monkeypatch.setattr(Target, "of", lambda answer, counts, of=Target.of: asked.append(counts) or of(answer, counts))
    images, labels = images_and_labels(600)
    ids = np.concatenate([np.arange(150), np.repeat(np.arange(150, 200), 9)])
    records = bound_per_unit(Records(images, labels, CLASSES), ids, "person", 3)
    model = tiny_model(
        pretraining=DREAMS,
        prior=GaussianPrior() if refined else NormalPrior(),
        refinement=Refinement(steps=1),
        privacy=Privacy(epsilon=1000.0, delta=1e-5),
    )
    model.fit(records, batch_size=5, epochs=1, steps_per_epoch=2, verbose=0)
    with records.opened() as (kept, of_kept):
        energy, counts = mean_energy(kept / 255), np.bincount(of_kept, minlength=CLASSES)
    assert float(model.contrast.energy) == pytest.approx(energy, rel=0.1)
    assert counts.sum() == 300
    np.testing.assert_allclose(asked[0], counts, atol=20)


def test_what_nobody_counted_is_as_much_as_can_be():
    records = of_persons(np.arange(12) % 4, 2)
    assert records.most_held == 8 and records.about_held(0.0) == 8
    assert records.about_held(5.5) == 5.5 and records.about_held(99.0) == 8
    ordinary = some_records(12)
    assert ordinary.most_held == ordinary.about_held(5.5) == 12


def test_with_one_record_a_person_everything_is_as_for_records():
    model = trained_on_persons(1)
    assert model.optimizer.noise_multiplier == model.plan.noise_multiplier
    ordinary = tiny_model()
    ordinary.fit(some_records(20), batch_size=5, epochs=1, steps_per_epoch=2, verbose=0)
    assert ordinary.plan == model.plan


def test_without_persons_the_statement_says_so(trained):
    model, _ = trained
    assert model.privacy_statement().to_json()["unit"] == "one record, not one person"
    words = str(model.privacy_statement())
    assert "one record (an image and its label), not one person" in words
    assert "several records of one person" in words


def test_a_ledger_of_persons_takes_no_records_and_other_persons(tmp_path):
    """A statement about persons would count what was charged for records as if it had been noised for persons."""
    images, labels = images_and_labels(60)
    records = Records(images, labels, CLASSES)

    def fit(data):
        ledger = Ledger(tmp_path / "ledger.jsonl")
        try:
            tiny_model(ledger=ledger).fit(data, batch_size=5, epochs=1, steps_per_epoch=1, verbose=0)
        finally:
            ledger.close()

    fit(bound_per_unit(records, np.arange(60) % 20, "person", 3))
    before = (tmp_path / "ledger.jsonl").read_bytes()
    for other in (
        records,
        bound_per_unit(records, np.arange(60) % 20, "person", 2),
        bound_per_unit(records, np.arange(60) % 30, "person", 3),
    ):
        with pytest.raises(InvalidInputError, match="another unit"):
            fit(other)
    assert (tmp_path / "ledger.jsonl").read_bytes() == before


def test_a_release_from_records_does_not_count_for_persons():
    """Asked for by hand: `fit` asks with the records that it was given."""
    images, labels = images_and_labels(60)
    records = Records(images, labels, CLASSES)
    model = tiny_model(prior=GaussianPrior(), refinement=Refinement(steps=1))
    model.fit(bound_per_unit(records, np.arange(60) % 20, "person", 3), batch_size=5, steps_per_epoch=1, verbose=0)
    before = model.ledger.events
    for release in (model.refinement.run, model.prior.fit):
        with pytest.raises(InvalidInputError, match="another unit"):
            release(model, records)
    assert model.ledger.events == before


def test_events_of_records_do_not_count_for_persons():
    images, labels = images_and_labels(20)
    model = tiny_model()
    model.ledger.charge(Event("a", 50.0))
    with pytest.raises(InvalidInputError, match="another unit"):
        model.fit(
            bound_per_unit(Records(images, labels, CLASSES), np.arange(20), "person", 1),
            batch_size=5,
            steps_per_epoch=1,
            verbose=0,
        )
    assert len(model.ledger.events) == 1


SMALL = """
--steps 2 --rounds 1 --batch-size 4 --latent-dim 2 --width 2 --physical-batch-size 16 --num-classes 3
--pretrain-steps 2 --sleep-steps 0 --refine-steps 1 --name run --accountant pld
"""


def test_train_bounds_persons_and_anyone_can_recompute_epsilon(tmp_path, monkeypatch):
    images, labels = images_and_labels(60)
    np.savez(tmp_path / "data.npz", x_train=images, y_train=labels, patient=np.arange(60) % 20)
    where = ["--data", str(tmp_path / "data.npz"), "--runs", str(tmp_path), "--unit", "patient", "--max-per-unit", "2"]
    monkeypatch.setattr(sys, "argv", ["train.py", *where, *shlex.split(SMALL)])
    train.main()
    entry = json.loads((tmp_path / "run" / "release" / "privacy.json").read_text())
    assert (entry["unit_column"], entry["num_units"], entry["num_records"]) == ("patient", 20, 60)
    assert {event["sampling_rate"] for event in entry["events"]} == {1, 4 / 20}
    assert recomputed_epsilon(entry["events"], entry["delta"], "pld") == pytest.approx(entry["epsilon"], rel=5e-3)
    assert entry["epsilon"] <= 1
    run = tmp_path / "run"
    real = real_images(run, read_release(run))
    assert len(real.train[0]) == 2 * 20, "what was left out of training is no member"
    moved = (tmp_path / "data.npz").rename(tmp_path / "moved.npz")
    assert len(real_images(run, read_release(run), data=moved, num_classes=CLASSES).train[0]) == 2 * 20
    moved.rename(tmp_path / "data.npz")
    config = json.loads((run / "private" / "config.json").read_text())
    for name, odd in {"unit": ["patient"], "max_per_unit": "2", "seed": "0"}.items():
        (run / "private" / "config.json").write_text(json.dumps({**config, name: odd}))
        with pytest.raises(InvalidInputError, match=name):
            real_images(run, read_release(run))


def test_runs_on_one_ledger_of_persons_share_one_budget(tmp_path, monkeypatch):
    """Also where each keeps other records of a person; the records themselves are another unit."""
    images, labels = images_and_labels(60)
    np.savez(tmp_path / "data.npz", x_train=images, y_train=labels, patient=np.arange(60) % 20)

    def run(name, *more):
        where = ["--data", str(tmp_path / "data.npz"), "--runs", str(tmp_path), "--ledger", str(tmp_path / "ledger")]
        monkeypatch.setattr(sys, "argv", ["train.py", *where, *shlex.split(SMALL), "--name", name, *more])
        train.main()
        return json.loads((tmp_path / name / "release" / "privacy.json").read_text())

    persons = "--unit", "patient", "--max-per-unit", "2", "--accountant", "rdp"
    first = run("first", *persons, "--epsilon", "1")
    both = run("both", *persons, "--epsilon", "2", "--seed", "1")
    assert first["shared_ledger"] and both["shared_ledger"]
    assert (both["unit_column"], both["num_units"], both["max_records_per_unit"]) == ("patient", 20, 2)
    assert sum(event["count"] for event in both["events"]) == 2 * sum(event["count"] for event in first["events"])
    assert first["epsilon"] <= 1 < both["epsilon"] <= 2
    assert recomputed_epsilon(both["events"], both["delta"], "rdp") == pytest.approx(both["epsilon"], rel=5e-3)
    before = (tmp_path / "ledger").read_bytes()
    for more in ((), ("--unit", "patient", "--max-per-unit", "3")):
        with pytest.raises(SystemExit) as refused:
            run("another", *more, "--epsilon", "4")
        assert refused.value.code == 2 and not (tmp_path / "another").exists()
    assert (tmp_path / "ledger").read_bytes() == before


@pytest.mark.parametrize(
    "ids, words",
    [
        (np.arange(7), r"shape \(7,\) for 8 records"),
        (np.zeros((8, 2), int), r"shape \(8, 2\)"),
        (np.arange(8) / 2, "dtype float64"),
        (np.zeros(8, bool), "dtype bool"),
    ],
)
def test_ids_that_do_not_fit_are_refused(tmp_path, ids, words):
    images, labels = images_and_labels(8)
    np.savez(tmp_path / "data.npz", x_train=images, y_train=labels, patient=ids)
    with pytest.raises(InvalidInputError, match=words):
        datasets.load_npz(tmp_path / "data.npz", CLASSES, unit="patient")
    with pytest.raises(InvalidInputError, match="no array elsewhere.*patient"):
        datasets.load_npz(tmp_path / "data.npz", CLASSES, unit="elsewhere")
