"""Which arrays become records, and what is said of those that do not."""

import numpy as np
import pytest
from conftest import images_and_labels

from tf_dp2vae.records import Records, checked_records, resized
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
    unlabelled = Records(images[:6], None, 0).joined(images[6:], labels[6:], included)
    with unlabelled.opened() as (stored, kept):
        assert len(stored) == len(kept) == 8 and unlabelled.num_classes == 0
