"""Shared helpers: tiny networks, small data, and the plain loop that engines are measured against."""

from __future__ import annotations

import os
import re
import zlib
from contextlib import contextmanager
from functools import cache

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pytest
import tensorflow as tf
from dp_accounting.rdp import rdp_privacy_accountant
from hypothesis import settings

from tf_dp2vae import model, randomness
from tf_dp2vae.gradients import plain_apply
from tf_dp2vae.model import DP2VAE
from tf_dp2vae.networks import build_decoder, build_encoder
from tf_dp2vae.pretraining import Dreams, NoPretraining
from tf_dp2vae.priors import NormalPrior
from tf_dp2vae.records import Records

SHAPE, LATENT, CLASSES = (8, 8, 1), 2, 3
# A red suite has to mean a change, not a draw: hypothesis' examples are the same in each run (`--hypothesis-profile=default`
# draws others), and so is what the operating system would give (below).
settings.register_profile("suite", derandomize=True, deadline=None)
settings.load_profile("suite")
DREAMS = Dreams(steps=2, sleep_steps=0)


class Silence:
    """Entropy whose noise is zero, to look at answers before noise."""

    secure = False

    def generator(self):
        return self

    def standard_normal(self, out):
        out[...] = 0
        return out


class Numbered:
    """Entropy whose k-th generator is seeded with k, for a test that draws the same again."""

    secure = False

    def __init__(self):
        self.given = 0

    def stream(self):
        return self

    def generator(self):
        self.given += 1
        return np.random.default_rng(self.given)


def images_and_labels(num, classes=CLASSES, seed=0):
    """Random uint8 images and labels that cover every class."""
    random = np.random.default_rng(seed)
    labels = (np.arange(num) % max(classes, 1)).astype(np.int32)
    return random.integers(0, 256, (num, *SHAPE), dtype=np.uint8), labels


IMAGES, LABELS = images_and_labels(48)


def some_records(num=40, classes=CLASSES, seed=0):
    images, labels = images_and_labels(num, classes, seed)
    return Records(images, labels if classes else None, classes)


def tiny_model(classes=CLASSES, **arguments):
    """A compiled DP2VAE of some hundred weights whose fit takes seconds."""
    encoder = build_encoder(SHAPE, LATENT, classes, width=1)
    decoder = build_decoder(SHAPE, LATENT, classes, width=2)
    arguments = {
        "pretraining": NoPretraining(),
        "prior": NormalPrior(),
        "refinement": None,
        "physical_batch_size": 16,
        **arguments,
    }
    model = DP2VAE(encoder, decoder, **arguments)
    model.compile("dp-adam")
    return model


def fit(model, images=IMAGES, labels=LABELS, **arguments):
    return model.fit(images, labels, **{"batch_size": 12, "steps_per_epoch": 2, "verbose": 0, **arguments})


def equal_weights(first, second):
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def randomised(network, seed=0):
    """The network with all weights random: zero biases would hide errors."""
    random = np.random.default_rng(seed)
    for variable in network.trainable_variables:
        variable.assign(random.normal(0, 0.5, variable.shape))
    return network


def loop_clipped_sum(loss, batch, mask, variables, clip):
    """Σ clip_C(g_i) as the definition says: one tape an example, norms in float64."""
    sums = [np.zeros(variable.shape) for variable in variables]
    for example in np.flatnonzero(np.asarray(mask)):
        alone = tf.nest.map_structure(lambda leaf, i=example: leaf[i : i + 1], batch)
        with tf.GradientTape() as tape:
            value = loss(plain_apply, alone)[0]
        gradients = tape.gradient(
            value, [v.value for v in variables], unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        arrays = [tf.convert_to_tensor(gradient).numpy().astype(np.float64) for gradient in gradients]
        scale = min(1.0, clip / max(global_norm(arrays), 1e-300))
        sums = [total + scale * array for total, array in zip(sums, arrays)]
    return sums


def global_norm(arrays):
    return float(np.sqrt(sum(np.square(np.asarray(array, np.float64)).sum() for array in arrays)))


def relative_error(found, expected):
    """‖found − expected‖ / ‖expected‖ over all variables together."""
    differences = [np.asarray(a, np.float64) - np.asarray(b, np.float64) for a, b in zip(found, expected, strict=True)]
    return global_norm(differences) / max(global_norm(expected), 1e-12)


def smoothed(values):
    """Grid points in units of the deviation, spread evenly over their cells: Kolmogorov and Smirnov know no steps."""
    step = min(np.diff(np.unique(np.round(values, 9))))
    return values + np.random.default_rng(0).uniform(-step / 2, step / 2, values.shape)


class _RepeatableSystem:
    """In the place of `os` in `randomness`: bytes that depend on the test's name alone."""

    def __init__(self):
        self.begin("")

    def begin(self, test):
        self._random = np.random.default_rng(zlib.crc32(test.encode()))

    def urandom(self, size):
        return self._random.bytes(size)

    @contextmanager
    def another(self, name):
        """Bytes of another name; then the ones before go on."""
        before = self._random
        self.begin(name)
        try:
            yield
        finally:
            self._random = before


_SYSTEM = _RepeatableSystem()


def pytest_runtest_setup(item):
    """Before any fixture of the test is made."""
    _SYSTEM.begin(item.nodeid)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef, request):
    """A fixture that several tests share does not depend on which of them came first: they run on two cores."""
    if fixturedef.scope == "function":
        return (yield)
    with _SYSTEM.another(f"{fixturedef.baseid} {fixturedef.argname} {request.param_index}"):
        return (yield)


@pytest.fixture(scope="session", autouse=True)
def repeatable_entropy():
    """All of `SystemEntropy` runs as it is, but for its source."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(randomness, "os", _SYSTEM)
        yield


@pytest.fixture(scope="session", autouse=True)
def remembered_divergences():
    """Takes equal Rényi divergences once: calibration takes seconds, and many models here are trained alike."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rdp_privacy_accountant, "_compute_log_a", cache(rdp_privacy_accountant._compute_log_a))
        yield


@pytest.fixture(scope="session", autouse=True)
def networks_seen_before():
    """Looks at equal networks once: it takes as long as their training, and most models here have the same."""
    look, passed = model.refuse_mixing, set()

    def refuse_mixing(networks):
        layers = [layer for network in networks for layer in network._flatten_layers()]
        # Keras counts layers of one type through the whole process: dense_7.
        key = re.sub(r'_\d+"', '"', repr([[n.to_json() for n in networks], [layer.trainable for layer in layers]]))
        # What a layer of a test's own does stands in no configuration.
        known = all(type(layer).__module__.startswith(("keras.", "tf_dp2vae.")) for layer in layers)
        if not known or key not in passed:
            look(networks)
            passed.add(key)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "refuse_mixing", refuse_mixing)
        yield


@pytest.fixture(scope="session")
def trained():
    """One labelled model after its whole training, shared by tests that only look at it."""
    keras.utils.set_random_seed(0)
    model = tiny_model(pretraining=DREAMS, prior=None, physical_batch_size=None)
    history = model.fit(IMAGES, LABELS, batch_size=12, epochs=2, steps_per_epoch=3, verbose=0)
    return model, history
