"""What a model is saved and exported as: configuration, Keras file, sampler."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import CLASSES, IMAGES, LABELS, LATENT, SHAPE, equal_weights, fit, tiny_model

import tf_dp2vae
from tf_dp2vae.accounting import Privacy
from tf_dp2vae.baselines import StatisticsAlone, build_linear_decoder
from tf_dp2vae.contrast import Contrast
from tf_dp2vae.judge import Judge
from tf_dp2vae.model import DP2VAE
from tf_dp2vae.networks import build_encoder
from tf_dp2vae.pretraining import Dreams
from tf_dp2vae.priors import LatentPrior
from tf_dp2vae.refinement import Refinement
from tf_dp2vae.reproducible import renumbered, with_names
from tf_dp2vae.sampler import Sampler
from tf_dp2vae.saved import load
from tf_dp2vae.validation import InvalidInputError


def test_config_round_trip():
    model = tiny_model(draws=3, seed=5, privacy=Privacy(2.0, 1e-6, "pld", 0.5), pretraining=Dreams(steps=7), prior=None)
    again = DP2VAE.from_config(model.get_config())
    assert again.get_config() == model.get_config()
    assert again.privacy == model.privacy and again.pretraining == model.pretraining and again.draws == 3


def test_keras_file_keeps_weights_ledger_and_guarantee(trained, tmp_path):
    model, _ = trained
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert equal_weights(model.get_weights(), again.get_weights())
    assert equal_weights(model.latent_prior.get_weights(), again.latent_prior.get_weights())
    assert again.ledger.events == model.ledger.events and len(again.ledger.events) == 4
    assert again.optimizer.noise_multiplier == model.optimizer.noise_multiplier
    assert equal_weights([v.numpy() for v in model.optimizer.variables], [v.numpy() for v in again.optimizer.variables])
    np.testing.assert_array_equal(
        again.predict((IMAGES, LABELS), verbose=0), model.predict((IMAGES, LABELS), verbose=0)
    )
    assert again.privacy_statement().to_json() == model.privacy_statement().to_json()
    with pytest.raises(InvalidInputError, match="budget"):
        fit(again)


class Unregistered(keras.layers.Dense):
    """A dense layer that Keras knows nothing of."""


def test_model_on_layers_of_ones_own_is_loaded_with_them(tmp_path):
    latent, label = keras.Input((LATENT,)), keras.Input((CLASSES,))
    hidden = Unregistered(64)(keras.layers.Concatenate()([latent, label]))
    decoder = keras.Model([latent, label], keras.layers.Reshape(SHAPE)(hidden))
    model = DP2VAE(tiny_model().encoder, decoder)
    model.save(tmp_path / "model.keras")
    with pytest.raises(InvalidInputError, match="pass them as custom_objects"):
        load(tmp_path / "model.keras")
    again = load(tmp_path / "model.keras", custom_objects={"Unregistered": Unregistered})
    assert any(type(layer) is Unregistered for layer in again.decoder.layers)
    assert equal_weights(model.get_weights(), again.get_weights())


LISTED = """
import sys
import tf_dp2vae
assert "tensorflow" not in sys.modules and "keras" not in sys.modules
model = tf_dp2vae.load(sys.argv[1])
assert isinstance(model.pretraining, tf_dp2vae.StatisticsAlone)
assert all(getattr(tf_dp2vae, name) is not None for name in tf_dp2vae.__all__)
assert {"NotPrivate", "build_linear_decoder", "datasets"} <= set(tf_dp2vae.__all__)
assert callable(tf_dp2vae.datasets.load)
"""


def test_every_name_is_listed_and_any_model_is_loaded_where_nothing_was_imported_before(tmp_path):
    encoder = build_encoder(SHAPE, 4, CLASSES, width=1)
    model = DP2VAE(encoder, build_linear_decoder(SHAPE, 4, CLASSES), pretraining=StatisticsAlone(components=4))
    model.save(tmp_path / "model.keras")
    root = Path(tf_dp2vae.__file__).parents[1]
    command = [sys.executable, "-c", LISTED, tmp_path / "model.keras"]
    ended = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


LOAD_ALONE = """
import socket
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("tf_dp2vae", "tensorflow_privacy", "dp_accounting"):
            raise ModuleNotFoundError(name)

def no_network(*arguments):
    raise AssertionError("the sampler asked for the network")

sys.meta_path.insert(0, Absent())
socket.socket.connect = socket.getaddrinfo = no_network
import numpy as np
import tensorflow as tf
sampler = tf.saved_model.load(sys.argv[1])
assert "tf_dp2vae" not in sys.modules
first, again, other = sampler.sample(5, 2, 11), sampler.sample(5, 2, 11), sampler.sample(5, 2, 12)
assert np.array_equal(first, again) and not np.array_equal(first, other)
for label in (-1, 3):
    try:
        sampler.sample(1, label, 0)
    except tf.errors.InvalidArgumentError as refusal:
        assert "label must lie in 0 to 2" in str(refusal)
    else:
        raise AssertionError("a label outside the set was accepted")
assert sampler.sample(0, 1, 0).shape == (0, 8, 8, 1)
assert sampler.num_classes() == 3 and sampler.image_shape().numpy().tolist() == [8, 8, 1]
images, labels = sampler.sample_records(70, 4)
assert images.shape == (70, 8, 8, 1) and images.dtype == tf.float32 and labels.dtype == tf.int32
assert np.array_equal(labels, sampler.sample_labels(70, 4)) and set(labels.numpy()) <= {0, 1, 2}
np.save(sys.argv[2], first)
"""


def without_network(command):
    """The command in a network namespace of its own, where the system allows that; else Python's sockets are shut only."""
    allowed = (
        shutil.which("unshare") and subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode == 0
    )
    return ["unshare", "-rn", *command] if allowed else command


def test_sampler_loads_without_this_package_and_network_and_samples_by_seed(trained, tmp_path):
    model, _ = trained
    model.export_sampler(tmp_path / "sampler")
    (tmp_path / "alone.py").write_text(LOAD_ALONE)
    command = without_network([sys.executable, "-I", "alone.py", "sampler", "samples.npy"])
    ended = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    )
    assert ended.returncode == 0, ended.stderr
    sampler = tf.saved_model.load(str(tmp_path / "sampler"))
    np.testing.assert_allclose(np.load(tmp_path / "samples.npy"), sampler.sample(5, 2, 11), atol=1e-6)


def test_exports_of_one_model_are_equal_bytes_whatever_came_before(tmp_path):
    model = tiny_model(refinement=Refinement(steps=1, candidates=2))
    model.export_sampler(tmp_path / "first")
    for offset in range(3):
        tf.function(lambda x, offset=offset: x + offset)(tf.constant(1))
    model.export_sampler(tmp_path / "second")
    model.save(tmp_path / "model.keras")
    load(tmp_path / "model.keras").export_sampler(tmp_path / "loaded")
    contents = [
        {
            path.relative_to(tmp_path / name): path.read_bytes()
            for path in (tmp_path / name).rglob("*")
            if path.is_file()
        }
        for name in ("first", "second", "loaded")
    ]
    assert contents[0] == contents[1] == contents[2] and len(contents[0]) == 3
    before, after = (tf.saved_model.load(str(tmp_path / name)) for name in ("first", "second"))
    np.testing.assert_array_equal(before.sample(3, 1, 5), after.sample(3, 1, 5))


def test_names_keep_apart_what_is_numbered_apart():
    names = ["sample_9", "sample_10", "sample_save_7", "sample", "while_body_3"]
    assert renumbered(names) == {
        "sample_9": "sample_0",
        "sample_10": "sample_1",
        "sample_save_7": "sample_save_0",
        "while_body_3": "while_body_0",
    }
    assert with_names("a_1, a_12: in_a_12_b", {"a_1": "a_0", "a_12": "a_1"}) == "a_0, a_1: in_a_1_b"


def test_sampler_holds_decoder_prior_and_contrast_and_nothing_else(trained, tmp_path):
    model, _ = trained
    model.export_sampler(tmp_path / "sampler")
    reader = tf.train.load_checkpoint(str(tmp_path / "sampler" / "variables" / "variables"))
    stored = [reader.get_tensor(name) for name in reader.get_variable_to_shape_map() if "OBJECT_GRAPH" not in name]
    released = [*model.decoder.variables, *model.latent_prior.variables, *model.contrast.variables]
    expected = [variable.numpy() for variable in released]
    assert {np.asarray(value).tobytes() for value in stored} == {np.asarray(value).tobytes() for value in expected}
    content = b"".join(path.read_bytes() for path in (tmp_path / "sampler").rglob("*") if path.is_file())
    for word in (b"encoder/", b"log_variance", b"adam", b"momentum", b"velocity", b"noise_multiplier"):
        assert word not in content.lower().replace(b"decoder/", b"")


@pytest.mark.parametrize("candidates", [1, 2])
def test_records_are_images_of_their_labels(candidates):
    """A decoder that shows the label it is asked for, in whatever order labels come."""
    latent, label = keras.Input((LATENT,)), keras.Input((CLASSES,))
    level = keras.ops.sum(label * np.array([-2.0, 0.0, 2.0], np.float32), axis=1, keepdims=True)
    shown = keras.layers.Reshape(SHAPE)(keras.ops.repeat(level + 0 * latent[:, :1], 64, axis=1))
    contrast, judge = Contrast(), Judge(SHAPE, CLASSES)
    sampler = Sampler(
        keras.Model([latent, label], shown), LatentPrior(LATENT, CLASSES), contrast, CLASSES, judge, candidates
    )
    images, labels = sampler.sample_records(150, 1)
    assert len(set(labels[:64].numpy())) == CLASSES
    expected = contrast(tf.gather(tf.constant([-2.0, 0.0, 2.0]), labels))
    np.testing.assert_allclose(images, tf.broadcast_to(expected[:, None, None, None], images.shape), atol=1e-6)


def test_classes_are_drawn_independently_at_one_seed():
    """With equal Gaussians the latents of classes are equal where their noise is."""
    decoder_input, label = keras.Input((LATENT,)), keras.Input((CLASSES,))
    shown = keras.layers.Reshape((1, 1, LATENT))(decoder_input + 0 * keras.ops.sum(label))
    prior, contrast = LatentPrior(LATENT, CLASSES), Contrast()
    sampler = Sampler(keras.Model([decoder_input, label], shown), prior, contrast, CLASSES)
    drawn = np.stack([sampler.sample(2_000, label, 5).numpy().ravel() for label in range(CLASSES)])
    apart = np.corrcoef(drawn) - np.eye(CLASSES)
    assert np.abs(apart).max() < 5 / np.sqrt(drawn.shape[1])


def test_samples_follow_the_prior_and_the_decoder(trained, tmp_path):
    model, _ = trained
    model.export_sampler(tmp_path / "sampler")
    sampler = tf.saved_model.load(str(tmp_path / "sampler"))
    random = np.random.default_rng(0)
    mean, scale = model.latent_prior.means.numpy()[1], model.latent_prior.scales.numpy()[1]
    latent = mean + random.standard_normal((20_000, LATENT)) @ scale.T
    expected = model.contrast(model.decode(tf.constant(latent, tf.float32), tf.ones(20_000, tf.int32))).numpy()
    found = sampler.sample(20_000, 1, 3).numpy()
    np.testing.assert_allclose(found.mean(0), expected.mean(0), atol=6 * expected.std(0).max() / np.sqrt(10_000))
    labels = np.bincount(sampler.sample_labels(20_000, 4).numpy(), minlength=CLASSES) / 20_000
    np.testing.assert_allclose(labels, model.latent_prior.frequencies.numpy(), atol=0.02)
