"""Names and files to records, and one clear line for every file that is none."""

import io
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import images_and_labels
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tf_dp2vae import datasets
from tf_dp2vae.validation import InvalidInputError

IMAGES, LABELS = images_and_labels(8)


def written(folder, content=None, **arrays):
    path = folder / "data.npz"
    if content is not None:
        path.write_bytes(content)
    else:
        np.savez_compressed(path, **arrays)
    return path


def refusal_of(path, num_classes=3):
    with pytest.raises(InvalidInputError) as refusal:
        datasets.load_npz(path, num_classes)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def test_npz_with_train_and_test(tmp_path):
    path = written(tmp_path, x_train=IMAGES / 255, y_train=LABELS, x_test=IMAGES[:2], y_test=LABELS[:2])
    data = datasets.load_npz(path, 3)
    assert data.name == "data" and data.train.num_records == 8 and data.test.num_records == 2
    with data.train.opened() as (images, labels):
        np.testing.assert_array_equal(images, IMAGES)
        np.testing.assert_array_equal(labels, LABELS)


def test_npz_without_labels_or_test_set(tmp_path):
    data = datasets.load_npz(written(tmp_path, x_train=IMAGES), 3)
    assert data.train.num_classes == 0 and data.test is None
    both = datasets.load_npz(written(tmp_path, x_train=IMAGES, x_test=IMAGES[:3]), 3)
    assert both.test.num_classes == 0 and both.test.num_records == 3


BAD_ARRAYS = {
    "wrong keys": ({"images": IMAGES}, "x_train.*images"),
    "no arrays": ({}, "x_train"),
    "x_test without y_test": ({"x_train": IMAGES, "y_train": LABELS, "x_test": IMAGES}, "x_test and y_test"),
    "y_test without y_train": ({"x_train": IMAGES, "x_test": IMAGES, "y_test": LABELS}, "y_test and no y_train"),
    "y_test alone": ({"x_train": IMAGES, "y_test": LABELS}, "x_test and y_test"),
    "y_test without x_test": ({"x_train": IMAGES, "y_train": LABELS, "y_test": LABELS}, "x_test and y_test"),
    "wrong dtype": ({"x_train": IMAGES.astype(np.int32)}, "int32"),
    "text": ({"x_train": np.array(["a", "b"])}, "dtype"),
    "pickled objects": ({"x_train": np.array([{}, []], object)}, "plain arrays"),
    "NaN": ({"x_train": np.full((3, 8, 8), np.nan)}, "NaN"),
    "outside the range": ({"x_train": IMAGES.astype(np.float32)}, "outside"),
    "no records": ({"x_train": IMAGES[:0]}, "empty"),
    "no pixels": ({"x_train": np.zeros((3, 0, 0))}, "0×0"),
    "a scalar": ({"x_train": np.uint8(3)}, "shape"),
    "labels that do not match": ({"x_train": IMAGES, "y_train": LABELS[:3]}, "8 images"),
    "labels outside the set": ({"x_train": IMAGES, "y_train": LABELS + 2}, "0 to 2"),
    "test labels outside the set": (
        {"x_train": IMAGES, "y_train": LABELS, "x_test": IMAGES, "y_test": LABELS + 2},
        "0 to 2",
    ),
    "test images of another shape": (
        {"x_train": IMAGES, "y_train": LABELS, "x_test": IMAGES[:, :4], "y_test": LABELS},
        "4×8×1, not the declared 8×8×1",
    ),
}


@pytest.mark.parametrize("arrays, words", BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_bad_arrays_are_refused(tmp_path, arrays, words):
    path = tmp_path / "data.npz"
    np.savez(path, **arrays)
    with pytest.raises(InvalidInputError, match=words):
        datasets.load_npz(path, 3)
    refusal_of(path)


def archive():
    file = io.BytesIO()
    np.savez_compressed(file, x_train=IMAGES, y_train=LABELS)
    return file.getvalue()


def plain_array():
    file = io.BytesIO()
    np.save(file, IMAGES)
    return file.getvalue()


def other_zip():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as zipped:
        zipped.writestr("x_train.npy", b"no array")
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"", b"text", archive()[:200], archive()[:-30], plain_array(), b"\x80\x04K\x01."],
    ids=["empty", "text", "cut early", "cut late", "npy", "pickle"],
)
def test_unreadable_files_are_refused(tmp_path, content):
    assert "data.npz" in refusal_of(written(tmp_path, content))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_archives_are_refused_or_read_but_never_crash(tmp_path, data):
    content = bytearray(archive())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = written(tmp_path, bytes(content))
    try:
        assert datasets.load_npz(path, 3).train.num_records > 0
    except InvalidInputError as refusal:
        assert "\n" not in str(refusal)


def test_zip_of_something_else_is_refused(tmp_path):
    assert "x_train" in refusal_of(written(tmp_path, other_zip()))


def test_missing_file_and_folder_are_refused(tmp_path):
    assert "nowhere.npz does not exist" in refusal_of(tmp_path / "nowhere.npz")
    assert f"{tmp_path.name} is a folder" in refusal_of(tmp_path)


def test_file_that_may_not_be_read_is_said_to_be_so(tmp_path, monkeypatch):
    path = written(tmp_path, x_train=IMAGES)
    assert datasets.load_npz(str(path)).train.num_records == len(IMAGES)
    monkeypatch.setattr(datasets.zipfile, "ZipFile", denied)
    assert "cannot be read (Permission denied): give access" in refusal_of(path)


def denied(*arguments, **named):
    raise PermissionError(13, "Permission denied")


def test_refusal_names_the_file_whose_records_are_invalid(tmp_path):
    path = written(tmp_path, x_train=IMAGES, y_train=LABELS + 7)
    assert f"labels of x_train of {path} lie outside the declared label set" in refusal_of(path)
    assert f"x_train of {path}" in refusal_of(written(tmp_path, x_train=np.full((3, 8, 8), np.nan)))


def test_label_set_must_be_a_whole_number(tmp_path):
    assert "num_classes=0" in refusal_of(written(tmp_path, x_train=IMAGES, y_train=LABELS), 0)


def test_mnist_is_the_official_one(monkeypatch):
    data = datasets.load("mnist")
    assert (data.train.num_records, data.test.num_records) == (60_000, 10_000)
    assert (data.train.image_shape, data.train.num_classes) == ((28, 28, 1), 10)
    with data.train.opened() as (images, labels):
        # Known of the official files: the first labels and the mean pixel of the training images.
        assert labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
        np.testing.assert_allclose(images.mean() / 255, 0.1306604762738429, rtol=1e-9)
    with data.test.opened() as (images, labels):
        assert labels[:5].tolist() == [7, 2, 1, 0, 4]
        np.testing.assert_allclose(images.mean() / 255, 0.13251460584233699, rtol=1e-9)


def test_mnist_with_another_hash_is_not_unpickled(monkeypatch):
    def forbidden(*arguments, **options):
        raise AssertionError("a pickle of unknown origin was opened")

    monkeypatch.setattr(datasets, "_MNIST_SHA256", "0" * 64)
    monkeypatch.setattr(datasets.pickle, "loads", forbidden)
    with pytest.raises(InvalidInputError, match="sha256"):
        datasets.load("mnist")


def test_mnist_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(datasets, "_MNIST_PACKAGE", "no-such-package-anywhere")
    with pytest.raises(InvalidInputError, match="no-such-package-anywhere"):
        datasets.load("mnist")


def test_name_that_tensorflow_datasets_refuses_is_one_line(monkeypatch):
    import tensorflow_datasets as tfds

    def fail(name):
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(tfds, "builder", fail)
    with pytest.raises(InvalidInputError, match="'no_such_set'.*first line") as refusal:
        datasets.load("no_such_set")
    assert "\n" not in str(refusal.value)


class Builder:
    """Stands for one of tensorflow-datasets: what is in its splits, and the feature that labels are."""

    def __init__(self, splits, label=None):
        features = dict.fromkeys(next(iter(splits.values())))
        if "label" in features:
            features["label"] = label or SimpleNamespace(num_classes=3)
        self.info = SimpleNamespace(features=features, splits=splits)

    def download_and_prepare(self):
        assert {"image", "label"} <= self.info.features.keys(), "downloaded in vain"

    def as_dataset(self, split, batch_size):
        return self.info.splits[split]


IMAGES_AND_LABELS = {"image": np.zeros((4, 8, 8, 1), np.uint8), "label": np.arange(4) % 3}


@pytest.mark.parametrize(
    "builder",
    [
        Builder({"train": {"text": ["a"], "label": np.zeros(1, int)}}),
        Builder({"train": {"image": np.zeros((4, 8, 8, 1), np.uint8)}}),
        Builder({"test": IMAGES_AND_LABELS}),
        Builder({"trainA": IMAGES_AND_LABELS}),
        Builder({"train": IMAGES_AND_LABELS}, label=object()),
    ],
    ids=["no image", "no label", "no training set", "splits of other names", "labels that are no classes"],
)
def test_a_set_of_another_make_is_refused_in_one_line(builder, monkeypatch):
    import tensorflow_datasets as tfds

    monkeypatch.setattr(tfds, "as_numpy", lambda part: part)
    monkeypatch.setattr(tfds, "builder", lambda name: Builder({"train": IMAGES_AND_LABELS}))
    assert datasets.load("plain").test is None
    monkeypatch.setattr(tfds, "builder", lambda name: builder)
    with pytest.raises(InvalidInputError, match="dataset 'odd' could not be had") as refusal:
        datasets.load("odd")
    assert "in vain" not in str(refusal.value)
