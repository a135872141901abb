"""Layers that mix examples are found by what they do, all of them at once."""

import keras
import pytest
import tensorflow as tf
from conftest import SHAPE, tiny_model
from keras import layers
from small_networks import CentredOnceTrained

from tf_dp2vae.mixing import mixing_layers, refuse_mixing, refuse_mixing_once_trained
from tf_dp2vae.model import DP2VAE
from tf_dp2vae.validation import InvalidInputError


class Centred(layers.Layer):
    """Takes the batch's mean away."""

    def call(self, inputs):
        return inputs - tf.reduce_mean(inputs, axis=0, keepdims=True)


class AboveTheLowest(layers.Layer):
    """Takes the batch's minimum away."""

    def call(self, inputs):
        return inputs - tf.reduce_min(inputs, axis=0, keepdims=True)


class SumOfLater(layers.Layer):
    """Adds up all later examples: the first one moves no other."""

    def call(self, inputs):
        return tf.cumsum(inputs, axis=0, reverse=True)


class Neighbour(layers.Layer):
    """Hands each example on to the next."""

    def call(self, inputs):
        return tf.roll(inputs, 1, axis=0)


class RunningMean(layers.Layer):
    """Hands its input on and remembers what it saw."""

    def build(self, shape):
        self.mean = self.add_weight(shape=shape[1:], initializer="zeros", trainable=False)

    def call(self, inputs):
        self.mean.assign(0.9 * self.mean + 0.1 * tf.reduce_mean(inputs, axis=0))
        return inputs


class ByPlace(layers.Layer):
    """Multiplies each example by its number."""

    def call(self, inputs):
        return inputs * tf.cast(tf.range(tf.shape(inputs)[0])[:, None] + 1, tf.float32)


class Whole(layers.Layer):
    """Makes whole numbers, which a small move does not reach."""

    def call(self, inputs):
        return tf.cast(4 * inputs, tf.int32)


class SumOfWhole(layers.Layer):
    """Adds all examples' whole numbers to each."""

    def call(self, inputs):
        return tf.cast(inputs + tf.reduce_sum(inputs, axis=0), tf.float32)


class LargestSeen(layers.Layer):
    """Divides by the largest number that it has seen, where that is more than some."""

    def build(self, shape):
        self.largest = self.add_weight(shape=(), initializer=keras.initializers.Constant(1e6), trainable=False)

    def call(self, inputs):
        largest, seen = self.largest.value, tf.reduce_max(inputs)
        self.largest.assign(tf.cond(seen > largest, lambda: tf.identity(seen), lambda: tf.identity(largest)))
        return inputs / self.largest


class HiddenMean(layers.Layer):
    """Keeps a mean, in training only, in a variable that Keras does not know of."""

    def build(self, shape):
        self.mean = tf.Variable(tf.zeros(shape[1:]), trainable=False)

    def call(self, inputs, training=False):
        if training:
            self.mean.assign(0.9 * self.mean + 0.1 * tf.reduce_mean(inputs, axis=0))
        return inputs


class SameMask(layers.Layer):
    """Leaves out the same places in each call, by a seed under which the first four stay."""

    def call(self, inputs):
        kept = tf.random.stateless_uniform([tf.shape(inputs)[0], 1], [7, 0]) > -1.0
        return tf.where(kept, inputs, 0.0)


class OutOfTensorFlow(layers.Layer):
    """Could do anything."""

    def call(self, inputs):
        return tf.ensure_shape(tf.numpy_function(lambda array: array, [inputs], tf.float32), inputs.shape)

    def compute_output_shape(self, shape):
        return shape


class BackThrough(layers.Layer):
    """Hands its input on, and back whatever its function makes of a gradient."""

    def __init__(self, back, **kwargs):
        super().__init__(**kwargs)
        self.back = back

    def call(self, inputs):
        @tf.custom_gradient
        def handed_on(inputs):
            return tf.identity(inputs), self.back

        return handed_on(inputs)


class PythonThatKeepsNothing(layers.Layer):
    """Calls Python beyond a hundred examples, and promises that it keeps nothing."""

    def call(self, inputs):
        def called():
            array = tf.numpy_function(lambda array: array, [inputs], tf.float32, stateful=False)
            return tf.ensure_shape(array, inputs.shape)

        return tf.cond(tf.shape(inputs)[0] > 100, called, lambda: inputs)

    def compute_output_shape(self, shape):
        return shape


class OwnCall(keras.Model):
    """A functional model that takes the batch's mean away before its layers see anything."""

    def call(self, inputs, training=None, mask=None):
        return super().call(inputs - tf.reduce_mean(inputs, axis=0, keepdims=True), training=training)


class BelowTogether(layers.Layer):
    """Bounds the whole batch from below, as if it were one example."""

    def call(self, inputs):
        return inputs * tf.minimum(1.0, 2.0 / tf.maximum(-tf.reduce_min(inputs), 1e-6))


class ClippedTogether(layers.Layer):
    """Bounds the norm of the whole batch, which examples of ordinary size do not reach."""

    def call(self, inputs):
        return tf.clip_by_norm(inputs, 50.0)


def network(*stack, shape=(5,)):
    tensor = inputs = keras.Input(shape)
    for layer in stack:
        tensor = layer(tensor)
    return keras.Model(inputs, tensor)


@pytest.mark.parametrize("kind", [layers.BatchNormalization, Centred, AboveTheLowest, SumOfLater, Neighbour])
def test_mixing_layer_is_found(kind):
    found = mixing_layers(network(layers.Dense(1), kind(name="culprit"), layers.Dense(2)))
    assert found == [f"culprit ({kind.__name__} mixes examples)"]


@pytest.mark.parametrize("layer", [layers.Dropout(0.5, seed=0), layers.GaussianNoise(1.0), ByPlace()])
def test_layer_that_treats_examples_by_their_place_is_found(layer):
    (found,) = mixing_layers(network(layers.Dense(3), layer))
    assert found == f"{layer.name} ({type(layer).__name__} treats examples by their place)"


def test_layer_that_keeps_what_it_sees_is_found():
    (found,) = mixing_layers(network(layers.Dense(3), RunningMean(name="culprit")))
    assert found == "culprit (RunningMean keeps what it sees)"


@pytest.mark.parametrize(
    "kind, words",
    [
        (LargestSeen, "keeps what it sees: AssignVariableOp"),
        (HiddenMean, "keeps what it sees: AssignVariableOp"),
        (OutOfTensorFlow, "keeps what it sees: PyFunc"),
        (PythonThatKeepsNothing, "keeps what it sees: PyFuncStateless"),
        (SameMask, "treats examples by their place: StatelessRandom"),
    ],
)
def test_what_random_examples_do_not_show_is_read_in_the_graph(kind, words):
    with pytest.raises(InvalidInputError) as refusal:
        refuse_mixing([network(layers.Dense(3), kind(name="culprit"), layers.Dense(2))])
    assert f"culprit ({kind.__name__} {words}" in str(refusal.value) and "dense" not in str(refusal.value)


SEEN = tf.Variable(0.0, trainable=False)


def remembered(gradient):
    SEEN.assign(0.9 * SEEN + 0.1 * tf.norm(gradient))
    return gradient


@pytest.mark.parametrize(
    "back, words",
    [
        (lambda gradient: tf.clip_by_norm(gradient, 1.0), "mixes examples"),
        (lambda gradient: tf.cumsum(gradient, axis=0), "mixes examples"),
        (lambda gradient: gradient + 1e-9 * tf.random.normal(tf.shape(gradient)), ""),
        (remembered, "keeps what it sees: AssignVariableOp"),
    ],
    ids=["clips the batch", "adds later ones", "draws", "remembers"],
)
def test_what_a_layer_does_on_the_way_back_alone_is_found(back, words):
    with pytest.raises(InvalidInputError) as refusal:
        refuse_mixing([network(layers.Dense(3), BackThrough(back, name="culprit"), layers.Dense(2))])
    assert f"culprit (BackThrough {words}" in str(refusal.value) and "dense" not in str(refusal.value)


def test_networks_inside_a_network_are_entered():
    clips = BackThrough(lambda gradient: tf.clip_by_norm(gradient, 1.0), name="culprit")
    inner = network(layers.Dense(4), network(layers.Dense(3), clips, shape=(4,)))
    assert mixing_layers(network(layers.Dense(5), inner)) == ["culprit (BackThrough mixes examples)"]


def test_what_has_no_gradient_is_refused():
    """Nothing would be seen of what lies behind it on the way back."""
    shrunk = layers.Lambda(lambda images: tf.image.resize(images, (4, 4), "area"), name="shrunk")
    (found,) = mixing_layers(network(shrunk, shape=SHAPE))
    assert found.startswith("shrunk (Lambda cannot be looked at") and "ResizeArea" in found


def test_layer_that_fails_on_random_examples_is_named():
    rows = layers.Lambda(lambda inputs: tf.cast(100 * inputs, tf.int32))
    (found,) = mixing_layers(network(rows, layers.Embedding(8, 2, name="table"), layers.Dense(2)))
    assert found.startswith("table (Embedding cannot be looked at, for it fails on random examples: indices[")
    assert "is not in [0, 8)" in found


def test_mixing_of_negative_numbers_alone_is_found():
    """Half of all latents are."""
    (found,) = mixing_layers(network(BelowTogether(name="culprit")))
    assert found == "culprit (BelowTogether mixes examples)"


def recurrent(inputs):
    state = layers.Dense(3)(inputs)
    return layers.GRU(3)(layers.RepeatVector(2)(inputs), initial_state=state)


def attending(inputs):
    sequence = layers.Reshape((2, 4))(layers.Dense(8)(inputs))
    return layers.MultiHeadAttention(2, 4)(sequence, value=sequence)


@pytest.mark.parametrize("build", [recurrent, attending])
def test_what_enters_by_its_name_moves_along(build):
    inputs = keras.Input((8,))
    assert mixing_layers(keras.Model(inputs, build(inputs))) == []


def test_call_of_one_network_alone_is_refused():
    model = tiny_model()
    usual = model.encoder.call
    model.encoder.call = lambda inputs, **given: usual([inputs[0] - tf.reduce_mean(inputs[0], 0), inputs[1]], **given)
    with pytest.raises(InvalidInputError, match="call of its own"):
        DP2VAE(model.encoder, model.decoder)


def test_tensor_that_enters_twice_mixes_nothing():
    inputs = keras.Input((3,))
    refuse_mixing([keras.Model(inputs, layers.Multiply()([inputs, inputs]))])


def test_network_with_a_call_of_its_own_is_refused():
    inputs = keras.Input(SHAPE)
    hidden = layers.Flatten()(inputs)
    encoder = OwnCall(inputs, [layers.Dense(2)(hidden), layers.Dense(2)(hidden)])
    with pytest.raises(InvalidInputError, match="OwnCall with a call of its own"):
        DP2VAE(encoder, tiny_model(classes=0).decoder)


def test_mixing_of_large_examples_alone_is_found():
    with pytest.raises(InvalidInputError, match="mixes examples"):
        refuse_mixing([network(ClippedTogether())])


def test_networks_are_looked_at_again_with_the_weights_that_they_have_by_now():
    model = network(layers.Dense(3), CentredOnceTrained(name="culprit"))
    refuse_mixing_once_trained([model])
    model.get_layer("culprit").gain.assign(1.0)
    with pytest.raises(InvalidInputError, match="mixes examples"):
        refuse_mixing_once_trained([model])


def test_loops_lookups_and_assertions_are_no_state():
    class Checked(layers.Layer):
        def call(self, inputs):
            with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(inputs < 1e9), [inputs])]):
                return tf.identity(inputs)

    refuse_mixing([network(Checked(), layers.Reshape((5, 1)), layers.LSTM(3))])
    tokens = keras.Input((3,), dtype="int32")
    refuse_mixing([keras.Model(tokens, layers.Embedding(4, 2)(tokens))])


def test_mixing_along_whole_numbers_is_found_in_the_whole():
    (found,) = mixing_layers(network(Whole(), SumOfWhole()))
    assert found.endswith("(Functional mixes examples)")


def test_mixing_operation_without_a_layer_is_found():
    inputs = keras.Input((5,))
    model = keras.Model(inputs, inputs - keras.ops.mean(inputs, axis=0, keepdims=True))
    with pytest.raises(InvalidInputError, match="mix"):
        refuse_mixing([model])


def test_nested_and_sequential_models_are_looked_into():
    inner = keras.Sequential([keras.Input((5,)), layers.BatchNormalization(name="hidden"), layers.Dense(5)])
    assert mixing_layers(network(layers.Dense(5), inner))
    assert mixing_layers(inner) == ["hidden (BatchNormalization mixes examples)"]


@pytest.mark.parametrize(
    "layer",
    [
        layers.Dropout(0.0),
        layers.GroupNormalization(groups=1),
        layers.LayerNormalization(),
        layers.Dense(4, activation="softmax"),
        layers.Reshape((5, 1)),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_that_keep_examples_apart_pass(layer):
    refuse_mixing([network(layer)])


def test_convolutions_and_attention_pass():
    image = keras.Input((4, 4, 2))
    hidden = layers.Conv2DTranspose(3, 3, padding="same")(layers.Conv2D(3, 2)(image))
    sequence = layers.Reshape((-1, 3))(hidden)
    refuse_mixing([keras.Model(image, layers.MultiHeadAttention(1, 2)(sequence, sequence))])


def test_model_refuses_and_lists_all_offenders_of_both_networks():
    image, latent = keras.Input(SHAPE), keras.Input((2,))
    hidden = layers.BatchNormalization(name="norm_of_encoder")(layers.Flatten()(image))
    encoder = keras.Model(image, [layers.Dense(2)(hidden), layers.Dense(2)(Centred(name="centred")(hidden))])
    wide = layers.BatchNormalization(name="norm_of_decoder")(layers.Dense(64)(latent))
    decoder = keras.Model(latent, layers.Reshape(SHAPE)(wide))
    with pytest.raises(InvalidInputError) as refusal:
        DP2VAE(encoder, decoder)
    for name in ("norm_of_encoder (BatchNormalization", "centred (Centred", "norm_of_decoder (BatchNormalization"):
        assert name in str(refusal.value)


@pytest.mark.parametrize("after", [[], [layers.Rescaling(0.0)]], ids=["seen", "hidden by what follows"])
def test_layer_that_mixes_only_once_it_is_trained_is_refused(after):
    zero = network(layers.Dense(3), CentredOnceTrained(name="culprit"), *after)
    assert mixing_layers(zero) == []
    with pytest.raises(InvalidInputError, match="culprit .CentredOnceTrained mixes examples"):
        refuse_mixing([network(layers.Dense(3)), zero])
    assert float(zero.get_layer("culprit").gain) == 0


def test_probing_leaves_weights_and_statistics_as_they_were():
    norm = layers.BatchNormalization()
    model = network(norm)
    before = [variable.numpy() for variable in model.variables]
    mixing_layers(model)
    assert all((old == variable.numpy()).all() for old, variable in zip(before, model.variables))
    assert mixing_layers(tiny_model().decoder) == []
