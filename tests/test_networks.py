"""The decoder's residual blocks: what they add, what they leave as it was, and which sizes are accepted."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import CLASSES, LATENT, SHAPE

from tf_dp2vae.mixing import refuse_mixing
from tf_dp2vae.networks import build_decoder, build_encoder
from tf_dp2vae.validation import InvalidInputError

WIDTH = 8


def decoder(**arguments):
    return build_decoder(SHAPE, LATENT, CLASSES, **{"width": WIDTH, **arguments})


def test_block_costs_two_convolutions_and_their_normalisations():
    plain, one, two = (decoder(blocks=blocks).count_params() for blocks in range(3))
    assert one - plain == two - one == 2 * (9 * WIDTH**2 + WIDTH) + 2 * 2 * WIDTH


def test_block_adds_to_what_it_was_given():
    """Where a block's last normalisation gives 0, the decoder is the one without it."""
    plain, block = decoder(blocks=0), decoder(blocks=1)
    last = [layer for layer in block.layers if isinstance(layer, keras.layers.GroupNormalization)][-1]
    latents = np.random.default_rng(0).normal(size=(5, LATENT)).astype(np.float32), np.eye(CLASSES)[[0, 1, 2, 0, 1]]
    for variable in last.weights:
        variable.assign(np.zeros(variable.shape))
    # Of the layers that both have, in the order that they were made, those of the block stand behind the first.
    own = block.get_weights()
    inside = len(own) - len(plain.get_weights())
    plain.set_weights([*own[:2], *own[2 + inside :]])
    np.testing.assert_allclose(block(latents), plain(latents), atol=1e-6)
    last.beta.assign(np.ones(WIDTH))
    assert np.abs(block(latents) - plain(latents)).max() > 0.01


@pytest.mark.parametrize("width", [1, 2, 3, 6, 12])
def test_groups_fit_every_width_and_mix_no_examples(width):
    network = decoder(width=width, blocks=1)
    refuse_mixing([network])
    groups = {layer.groups for layer in network.layers if isinstance(layer, keras.layers.GroupNormalization)}
    assert groups == {np.gcd(4, width)}


@pytest.mark.parametrize("blocks", [-1, 0.5, True])
def test_number_of_blocks_is_checked(blocks):
    with pytest.raises(InvalidInputError, match=f"blocks={blocks}"):
        decoder(blocks=blocks)


@pytest.mark.parametrize("build", [build_encoder, build_decoder])
def test_what_is_no_shape_and_no_number_of_classes_is_refused(build):
    for shape in ((28, 28), 28, None, ("8", 8, 1), (None, None, 1), (8.0, 8.0, 1.0)):
        with pytest.raises(InvalidInputError, match="must be .height, width, channels."):
            build(shape, 2)
    with pytest.raises(InvalidInputError, match="num_classes=-1 must be a whole number of at least 0"):
        build((8, 8, 1), 2, -1)
    assert build(np.array([8, 8, 1]), 2).count_params() == build(tf.TensorShape([8, 8, 1]), 2).count_params()


def test_channels_come_last_whatever_keras_is_set_to():
    keras.config.set_image_data_format("channels_first")
    try:
        decoder, encoder = build_decoder((8, 12, 3), 2, width=4, blocks=1), build_encoder((8, 12, 3), 2)
    finally:
        keras.config.set_image_data_format("channels_last")
    assert decoder.outputs[0].shape[1:] == encoder.inputs[0].shape[1:] == (8, 12, 3)
    other = build_decoder((8, 12, 3), 2, width=4, blocks=1)
    assert np.array_equal(decoder([np.ones((1, 2))]), other([np.ones((1, 2))]))
    images = np.random.default_rng(0).uniform(size=(1, 8, 12, 3))
    assert np.array_equal(encoder([images])[0], build_encoder((8, 12, 3), 2)([images])[0])
