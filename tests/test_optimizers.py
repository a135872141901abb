"""The DP optimizer: expected batch, noise of the mechanism alone, and guards that raw gradients do not pass."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import SHAPE, smoothed, tiny_model
from keras import layers
from scipy import stats

from tf_dp2vae.gradients import BookKeepingEngine
from tf_dp2vae.ledger import Ledger
from tf_dp2vae.mechanisms import Mechanisms
from tf_dp2vae.optimizers import DPSGD, DPAdam, get_dp_optimizer
from tf_dp2vae.randomness import SystemEntropy, standard_normals
from tf_dp2vae.sampling import PoissonBatch, no_draws
from tf_dp2vae.validation import InvalidInputError

CLIP, SIGMA, EXPECTED, WIDTH = 0.5, 2.0, 20.0, 3000
OPTIMIZERS = [DPAdam, DPSGD]


class Direction:
    """A loss whose gradient is the same known vector for every example: the sum of the outputs of a bias."""

    def __init__(self):
        inputs = keras.Input(SHAPE)
        self.network = keras.Model(inputs, layers.Dense(WIDTH, kernel_initializer="zeros")(layers.Flatten()(inputs)))
        self.network.layers[-1].kernel.trainable = True

    private_draws = staticmethod(no_draws)

    def prepare(self, images, labels, draws):
        return images

    def losses(self, apply, batch):
        return tf.reduce_sum(apply(self.network, batch), axis=1)


def black_batch(num, weights, size=8):
    """Black images: the kernel's gradient is zero, the bias's is a constant vector of norm sqrt(WIDTH)."""
    mask = (np.arange(size) < num).astype(np.uint8)[None]
    images = np.zeros((1, size, *SHAPE), np.uint8)
    noise = standard_normals(SystemEntropy().generator(), weights)
    batch = PoissonBatch(images, np.zeros((1, size), np.int32), mask, np.int32(num > 0), (), noise)
    return tf.nest.map_structure(tf.constant, batch)


def noised_sum(loss, num):
    door = Mechanisms(Ledger(), SystemEntropy())

    def ask(variables, l2_norm_clip, noise_multiplier):
        batch = black_batch(num, loss.network.count_params())
        return door.gradient_sum(BookKeepingEngine(), loss, batch, variables, l2_norm_clip, noise_multiplier)[0]

    return ask


def gradients_of(optimizer, loss, num):
    return optimizer.private_gradients(noised_sum(loss, num), loss.network.trainable_variables)


def calibrated(kind=DPSGD, **arguments):
    return kind(l2_norm_clip=CLIP, noise_multiplier=SIGMA, expected_batch_size=EXPECTED, **arguments)


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("drawn", [0, 5])
def test_mean_and_deviation_of_private_gradients(kind, drawn):
    loss = Direction()
    kernel, bias = (gradient.numpy() for gradient in gradients_of(calibrated(kind), loss, drawn))
    mean = drawn * CLIP / np.sqrt(WIDTH) / EXPECTED
    deviation = SIGMA * CLIP / EXPECTED
    assert stats.kstest(smoothed(kernel.ravel() / deviation), "norm").pvalue > 1e-6
    assert stats.kstest(smoothed((bias - mean) / deviation), "norm").pvalue > 1e-6


def test_calls_are_independent_and_no_seed_repeats_them():
    loss, optimizer, draws = Direction(), calibrated(), []
    for _ in range(2):
        keras.utils.set_random_seed(5)
        tf.random.set_seed(5)
        draws.append(gradients_of(optimizer, loss, 3)[0].numpy().ravel())
    assert abs(np.corrcoef(*draws)[0, 1]) < 5 / np.sqrt(draws[0].size)


def test_global_generator_is_never_asked(monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("tensorflow-privacy's own noise comes from tf.random.normal")

    monkeypatch.setattr(tf.random, "normal", forbidden)
    assert np.std(gradients_of(calibrated(), Direction(), 3)[0]) > 0


def test_update_is_learning_rate_times_private_gradient():
    loss, optimizer = Direction(), calibrated(learning_rate=0.25)
    variables = loss.network.trainable_variables
    before = [variable.numpy() for variable in variables]
    gradients = gradients_of(optimizer, loss, 3)
    optimizer.apply(gradients, variables)
    for old, gradient, variable in zip(before, gradients, variables):
        np.testing.assert_allclose(variable.numpy(), old - 0.25 * gradient.numpy(), atol=1e-6)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_raw_gradients_are_refused_even_after_private_ones(kind):
    loss, optimizer = Direction(), calibrated(kind)
    variables = loss.network.trainable_variables
    raw = [tf.ones(variable.shape) for variable in variables]
    before = [variable.numpy() for variable in variables]
    issued = gradients_of(optimizer, loss, 3)
    attempts = [
        lambda: optimizer.apply(raw, variables),
        lambda: optimizer.apply_gradients(zip(raw, variables)),
        lambda: optimizer.apply([issued[0], raw[1]], variables),
        lambda: optimizer.apply([gradient + 0.0 for gradient in issued], variables),
    ]
    for attempt in attempts:
        with pytest.raises(ValueError, match="private_gradients"):
            attempt()
    optimizer.apply(issued, variables)
    with pytest.raises(ValueError, match="private_gradients"):
        optimizer.apply(issued, variables)
    assert not np.array_equal(before[0], variables[0].numpy())


def test_apply_gradients_takes_what_was_issued():
    loss, optimizer = Direction(), calibrated()
    variables = loss.network.trainable_variables
    before = variables[1].numpy()
    optimizer.apply_gradients(zip(gradients_of(optimizer, loss, 3), variables))
    assert not np.array_equal(before, variables[1].numpy())


@pytest.mark.parametrize("missing", [{"noise_multiplier": None}, {"expected_batch_size": None}])
def test_uncalibrated_optimizer_refuses_to_step(missing):
    arguments = {"noise_multiplier": 1.0, "expected_batch_size": 4.0, **missing}
    with pytest.raises(ValueError, match="fit"):
        gradients_of(DPAdam(**arguments), Direction(), 1)


def test_loss_tensor_with_its_tape_is_refused():
    with pytest.raises(TypeError, match="mechanism"):
        calibrated()._compute_gradients(tf.constant(1.0), [], tape=tf.GradientTape())


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_config_round_trip_keeps_the_guarantee(kind):
    optimizer = calibrated(kind, learning_rate=0.125)
    again = kind.from_config(optimizer.get_config())
    assert (again.l2_norm_clip, again.noise_multiplier, again.expected_batch_size) == (CLIP, SIGMA, EXPECTED)
    assert float(again.learning_rate) == 0.125
    through_keras = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(kind()))
    assert type(through_keras) is kind and through_keras.noise_multiplier is None


def test_loss_scale_is_refused_where_no_loss_is_scaled():
    with pytest.raises(InvalidInputError, match="loss_scale_factor would divide every update"):
        DPSGD(0.1, loss_scale_factor=1024.0)


@pytest.mark.parametrize("name", ["clipnorm", "clipvalue", "global_clipnorm"])
def test_clips_after_the_noise_are_refused(name):
    with pytest.raises(InvalidInputError, match="l2_norm_clip"):
        DPAdam(**{name: 1.0})


@pytest.mark.parametrize("optimizer", ["adam", "sgd", keras.optimizers.Adam()])
def test_other_optimizers_are_refused_by_compile(optimizer):
    with pytest.raises(InvalidInputError, match="is not private"):
        tiny_model().compile(optimizer)


def test_names_give_the_dp_optimizers():
    assert type(get_dp_optimizer("dp-adam")) is DPAdam and type(get_dp_optimizer("dp-sgd")) is DPSGD
    assert isinstance(DPAdam(), keras.optimizers.Adam) and isinstance(DPSGD(), keras.optimizers.SGD)
