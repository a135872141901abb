"""What a private step needs drawn: by the run's own entropy, on the host, for each place; the step itself draws nothing."""

import numpy as np
import pytest
import tensorflow as tf
from conftest import (
    LATENT,
    SHAPE,
    Numbered,
    global_norm,
    images_and_labels,
    randomised,
    relative_error,
    some_records,
    tiny_model,
)
from scipy import stats
from test_augmentation import loop_over_copies, moved

from tf_dp2vae.augmentation import Shifts
from tf_dp2vae.gradients import make_engine
from tf_dp2vae.model import DP2VAE
from tf_dp2vae.randomness import SystemEntropy
from tf_dp2vae.sampling import PoissonSource

UNLIKELY = 1e-6
MOVED = {"augmentation": Shifts(2), "draws": 2}


@pytest.mark.parametrize("arguments", [{}, {"draws": 3}, MOVED])
def test_shapes_and_types_are_those_of_the_model(arguments):
    model = tiny_model(**arguments)
    copies = arguments.get("draws", 1)
    found = [(rows.shape, rows.dtype.name) for rows in model.private_draws(SystemEntropy().generator(), 5)]
    moves = [((5, copies, 2), "int32")] if "augmentation" in arguments else []
    assert found == [((5, copies, LATENT), "float32"), *moves]


def test_latents_are_standard_normal_and_each_its_own():
    (latents,) = tiny_model(draws=3).private_draws(SystemEntropy().generator(), 20_000)
    values = latents.ravel().astype(np.float64)
    assert stats.kstest(values, "norm").pvalue > UNLIKELY
    assert abs(values.mean()) < 5 / np.sqrt(values.size) and abs(values.var() - 1) < 5 * np.sqrt(2 / values.size)
    assert stats.binomtest(int((np.abs(values) > 3).sum()), values.size, 2 * stats.norm.sf(3)).pvalue > UNLIKELY
    # Places, copies and dimensions, the next of each: none tells anything of another.
    for ahead, behind in [
        (latents[1:], latents[:-1]),
        (latents[:, 1:], latents[:, :-1]),
        (latents[..., 1:], latents[..., :-1]),
    ]:
        assert abs(np.corrcoef(ahead.ravel(), behind.ravel())[0, 1]) < 5 / np.sqrt(ahead.size)
    assert len(np.unique(latents[:, 0, 0])) > 19_900, "as float32, a few fall together"


@pytest.mark.parametrize("arguments", [{}, MOVED])
def test_each_step_of_a_fit_gets_what_generators_of_its_own_gave(monkeypatch, arguments):
    """Nothing else goes into them: not the seeds of Keras and TensorFlow, nor the draws of another step."""
    plain, seen, num, rate = DP2VAE.prepare, [], 24, 0.5

    def prepare(self, images, labels, draws):
        examples = plain(self, images, labels, draws)
        seen.append((*(rows.numpy() for rows in draws), examples[2].numpy()))
        return examples

    monkeypatch.setattr(DP2VAE, "prepare", prepare)
    model = tiny_model(entropy=Numbered(), physical_batch_size=num, **arguments)
    model.compile("dp-adam", run_eagerly=True)
    model.fit(*images_and_labels(num), batch_size=int(rate * num), epochs=1, steps_per_epoch=3, verbose=0)
    assert len(seen) == 3
    for step, (*draws, latents) in enumerate(seen):
        drawn = int((np.random.default_rng(3 * step + 1).random(num) < rate).sum())
        assert 0 < drawn < num
        expected = model.private_draws(np.random.default_rng(3 * step + 2), drawn)
        for rows, own in zip(draws, expected, strict=True):
            np.testing.assert_array_equal(rows[:drawn], own)
            assert not rows[drawn:].any()
        np.testing.assert_array_equal(latents, draws[0])
    assert not np.array_equal(seen[0][0][:5], seen[1][0][:5])


def random_operations(function, *arguments):
    """The kinds of operation in a compiled function, and in all that it calls, that draw."""
    graph = tf.function(function).get_concrete_function(*arguments).graph.as_graph_def()
    nodes = [*graph.node, *(node for called in graph.library.function for node in called.node_def)]
    return {node.op for node in nodes if "Random" in node.op or "Multinomial" in node.op}


def source_for(model, num=11, size=4):
    """A source of all records, and the model ready for private steps."""
    model.optimizer.configure(1.0, 1.0, float(num))
    model.optimizer.build(model.trainable_variables)
    model._engine = make_engine("book-keeping", model.private_networks)
    weights = sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)
    return PoissonSource(some_records(num), 1.0, size, SystemEntropy(), weights, model.private_draws)


@pytest.mark.parametrize("arguments", [{}, {"draws": 3}, MOVED])
def test_the_compiled_private_step_draws_nothing(arguments):
    model = tiny_model(**arguments)
    batch = tf.nest.map_structure(tf.constant, source_for(model).batch())
    assert not random_operations(model._private_step, batch)
    # What is ordinary may draw, and the search would find it.
    assert random_operations(
        lambda *batch: model.mean_elbo(*batch, model._noise), tf.zeros([2, *SHAPE]), tf.zeros([2], tf.int32)
    )


def test_clipped_sums_are_those_of_a_loop_over_records_with_the_draws_handed_in():
    """Across chunks, with copies moved pixel by pixel."""
    model, num, clip = tiny_model(**MOVED), 11, 1.0
    for network in (model.encoder, model.decoder):
        randomised(network)
    batch = tf.nest.map_structure(tf.constant, source_for(model, num).batch())
    latents, offsets = (rows.numpy().reshape(-1, *rows.shape[2:])[:num] for rows in batch.draws)
    images, labels = images_and_labels(num)
    copies = [
        [moved(image, 2 - above, 2 - left) for above, left in its]
        for image, its in zip(images / np.float32(255), offsets)
    ]
    alone = tf.constant(np.array(copies, np.float32)), tf.constant(labels), tf.constant(latents)
    variables = model.trainable_variables
    expected = loop_over_copies(model, alone, np.ones(num), variables, clip)
    sums, _ = model.mechanisms.gradient_sum(model._engine, model, batch, variables, clip, 0.0)
    assert global_norm(expected) > clip
    assert relative_error(sums, expected) < 1e-5
