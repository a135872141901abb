"""Train on synthetic, test on real: each classifier learns, and nothing is chosen on real test data."""

import numpy as np
import pytest

from tf_dp2vae.evaluation.cache import Cache
from tf_dp2vae.evaluation.classifiers import KINDS, _chosen, accuracies, build_cnn, usefulness
from tf_dp2vae.evaluation.real import RealImages


def blocks(num, seed, classes=3):
    """Images whose bright third tells the class."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, num).astype(np.int32)
    images = random.uniform(0, 0.5, (num, 9, 9, 1))
    for label in range(classes):
        images[labels == label, 3 * label : 3 * label + 3] += 0.5
    return images.astype(np.float32), labels


def as_records(images, labels):
    return np.round(255 * images).astype(np.uint8), labels


@pytest.fixture(scope="module")
def results():
    return accuracies(blocks(1500, 0), blocks(200, 1), as_records(*blocks(300, 2)), 3, 6, 0, "test")


@pytest.mark.parametrize("kind", KINDS)
def test_classifier_learns_what_there_is(results, kind):
    assert results[kind].accuracy > 0.95
    assert results[kind].accuracy == results[kind].real[results[kind].chosen_epoch - 1]


def test_epoch_is_the_best_on_validation_whatever_real_images_say():
    result = _chosen([0.3, 0.9, 0.8], [0.9, 0.1, 0.5])
    assert result.chosen_epoch == 2 and result.accuracy == 0.1


def test_cnn_is_that_of_the_protocol():
    layers = build_cnn((28, 28, 1), 10, 0).layers
    assert [layer.filters for layer in layers if hasattr(layer, "filters")] == [32, 64, 128]
    assert [layer.rate for layer in layers if hasattr(layer, "rate")] == [0.5]


def test_samples_of_one_class_teach_one_answer():
    images, _ = blocks(200, 3)
    ones = np.ones(200, np.int32)
    found = accuracies((images, ones), (images, ones), as_records(*blocks(300, 2)), 3, 1, 0, "test")
    share = float((blocks(300, 2)[1] == 1).mean())
    assert found["acc_lr"].accuracy == share


def test_accuracy_on_records_stands_beside_and_is_made_once(tmp_path, monkeypatch):
    train, test = as_records(*blocks(600, 4)), as_records(*blocks(300, 2))
    real, cache = RealImages("blocks", train, test, 3), Cache(tmp_path / "cache")
    noise = np.random.default_rng(5).random((300, 9, 9, 1)).astype(np.float32), blocks(300, 6)[1]
    values = [usefulness(noise, noise, real, 2, seed, cache)[0].values for seed in (0, 0, 1)]
    assert values[0]["acc_lr"] < 0.6 < 0.95 < values[0]["acc_lr_on_records"]
    assert values[0] == values[1] and len(list((tmp_path / "cache").iterdir())) == 1
    assert values[0]["courses"] != values[2]["courses"]
    assert all(values[0][name] == values[2][name] for name in values[0] if name.endswith("on_records"))
