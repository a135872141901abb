"""Which arrays become records, and what is said of those that do not."""

import json

import numpy as np
import pytest
from conftest import CLASSES, DREAMS, SHAPE, images_and_labels, tiny_model

from tf_dp2vae.records import NULL, Records, checked_records, resized
from tf_dp2vae.refinement import Refinement
from tf_dp2vae.runs import RunFolder
from tf_dp2vae.units import bound_per_unit
from tf_dp2vae.validation import InvalidInputError

IMAGES, LABELS = images_and_labels(6)


def test_floats_and_bytes_give_the_same_records():
    for images in (IMAGES, IMAGES / 255.0, (IMAGES / 255).astype(np.float32), IMAGES[..., 0]):
        records = checked_records(images, LABELS, 3)
        with records.opened() as (stored, labels):
            np.testing.assert_array_equal(stored, IMAGES)
            np.testing.assert_array_equal(labels, LABELS)
        assert (records.num_records, records.image_shape, records.num_classes) == (6, (8, 8, 1), 3)


def test_unlabelled_records_have_no_classes_and_lend_zeros():
    records = checked_records(IMAGES, None, 3)
    assert records.num_classes == 0
    with records.opened() as (_, labels):
        assert labels.dtype == np.int32 and labels.tolist() == [0] * 6


def changed(value):
    images = IMAGES / 255.0
    images[2, 3, 3, 0] = value
    return images


BAD_IMAGES = {
    "masked": (np.ma.masked_equal(IMAGES, 0), "x: a masked array"),
    "dtype int64": (IMAGES.astype(np.int64), "int64"),
    "dtype uint16": (IMAGES.astype(np.uint16), "uint16"),
    "dtype bool": (IMAGES > 9, "bool"),
    "dtype object": (IMAGES.astype(object), "object"),
    "dtype text": (np.array(["a", "b"]), "dtype"),
    "flat": (IMAGES.reshape(6, -1), r"\(6, 64\)"),
    "five axes": (IMAGES[None], r"\(1, 6, 8, 8, 1\)"),
    "empty": (IMAGES[:0], "empty"),
    "no pixels": (np.zeros((6, 0, 0, 1)), "0×0×1"),
    "NaN": (changed(np.nan), "NaN"),
    "infinite": (changed(np.inf), "infinite"),
    "above one": (changed(1.01), r"outside \[0, 1\]"),
    "below zero": (changed(-0.01), r"outside \[0, 1\]"),
}
BAD_LABELS = {
    "masked": (np.ma.masked_equal(LABELS, 0), "labels: a masked array"),
    "too few": (LABELS[:5], r"\(5,\).*6 images"),
    "one-hot": (np.eye(3)[LABELS], r"\(6, 3\)"),
    "floats": (LABELS.astype(float), "float64"),
    "text": (LABELS.astype(str), "dtype"),
    "negative": (LABELS - 1, "2 labels.*0 to 2"),
    "beyond the set": (LABELS + 1, "2 labels.*0 to 2"),
}


@pytest.mark.parametrize("images, words", BAD_IMAGES.values(), ids=BAD_IMAGES)
def test_bad_images_are_refused_in_one_line(images, words):
    with pytest.raises(InvalidInputError, match=words) as refusal:
        checked_records(images, None, 3)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("labels, words", BAD_LABELS.values(), ids=BAD_LABELS)
def test_bad_labels_are_refused_in_one_line(labels, words):
    with pytest.raises(InvalidInputError, match=words) as refusal:
        checked_records(IMAGES, labels, 3)
    assert "\n" not in str(refusal.value)


def test_invalid_records_count_as_null_where_that_is_asked_for():
    images, labels = IMAGES / 255.0, LABELS.copy()
    images[0, 1, 1, 0], images[2, 0, 0, 0], images[3, 3, 3, 0], labels[5] = np.nan, 1.5, -0.1, 3
    with pytest.warns(UserWarning, match="^4 of 6 records are invalid and count as null. This number is private.$"):
        records = checked_records(images, labels, 3, invalid="null")
    assert records.num_records == records.num_units == 6
    with records.opened() as (held, held_labels):
        np.testing.assert_array_equal(held, IMAGES[[1, 4]])
        np.testing.assert_array_equal(held_labels, LABELS[[1, 4]])


def test_persons_keep_their_own_records_where_invalid_ones_are_null():
    labels = np.array([0, 9, 1, 2, 9, 0])
    with pytest.warns(UserWarning, match="2 of 6"):
        records = checked_records(IMAGES, labels, 3, invalid="null")
    records = bound_per_unit(records, np.array(["a", "a", "b", "b", "c", "a"]), "person", 6)
    assert records.num_records == 6 and records.num_units == 3
    of_person = [records.places(np.arange(3) == person) for person in range(3)]
    with records.opened() as (images, _):
        for places, expected in zip(of_person, ([0, 5], [2, 3], [])):
            assert len(places) == 6
            np.testing.assert_array_equal(images[places[places != NULL]], IMAGES[expected])


def test_nothing_but_invalid_records_is_trained_on_and_released_like_any_other_data(tmp_path):
    with pytest.warns(UserWarning, match="48 of 48"):
        records = checked_records(np.full((48, *SHAPE), np.nan), np.zeros(48, int), CLASSES, invalid="null")
    model = tiny_model(pretraining=DREAMS, prior=None, refinement=Refinement(steps=2, candidates=2))
    run = RunFolder(tmp_path, "run")
    with run.opened(48, None) as ledger:
        model.ledger = ledger
        model.fit(records, batch_size=12, steps_per_epoch=2, verbose=0)
        run.write_release(model, records)
    assert json.loads((run.release / "privacy.json").read_text())["num_records"] == 48
    assert all(np.isfinite(weights).all() for weights in model.decoder.get_weights())


def test_other_shape_than_declared_is_refused():
    with pytest.raises(InvalidInputError, match="8×8×1, not the declared 28×28×1"):
        checked_records(IMAGES, None, 0, (28, 28, 1))


def test_public_images_are_resized_and_keep_their_labels():
    smooth = Records(np.full((6, 8, 8, 1), 100, np.uint8), LABELS, 3)
    larger = resized(smooth, (12, 16, 1))
    with larger.opened() as (images, labels):
        assert images.shape == (6, 12, 16, 1) and images.dtype == np.uint8
        assert np.all(images == 100)
        np.testing.assert_array_equal(labels, LABELS)
    assert resized(smooth, (8, 8, 1)) is smooth
    with pytest.raises(InvalidInputError, match="1 channels"):
        resized(smooth, (8, 8, 3))


def test_records_left_out_of_a_joined_set_are_null_records():
    images, labels = images_and_labels(10)
    included = np.array([True, False, True, False])
    joined = Records(images[:6], labels[:6], 3).joined(images[6:], labels[6:], included)
    assert joined.num_records == 10
    with joined.opened() as (stored, kept):
        np.testing.assert_array_equal(stored, images[[0, 1, 2, 3, 4, 5, 6, 8]])
        np.testing.assert_array_equal(kept, labels[[0, 1, 2, 3, 4, 5, 6, 8]])
    with_nulls = Records(images[:6], labels[:6], 3, num_null=2, positions=np.array([0, 1, 3, 4, 5, 7]))
    joined = with_nulls.joined(images[6:], labels[6:], included)
    assert joined.num_records == 12
    np.testing.assert_array_equal(joined._positions, [0, 1, 3, 4, 5, 7, 8, 10])
    unlabelled = Records(images[:6], None, 0).joined(images[6:], labels[6:], included)
    with unlabelled.opened() as (stored, kept):
        assert len(stored) == len(kept) == 8 and unlabelled.num_classes == 0
