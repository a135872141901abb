"""What a model refuses, and that nothing is charged, trained or written by then."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import (
    CLASSES,
    DREAMS,
    IMAGES,
    LABELS,
    LATENT,
    SHAPE,
    equal_weights,
    fit,
    global_norm,
    images_and_labels,
    some_records,
    tiny_model,
)
from small_networks import CentredOnceTrained

from tf_dp2vae.accounting import BudgetExceededError, Privacy
from tf_dp2vae.checkpoints import Checkpoints
from tf_dp2vae.gradients import make_engine
from tf_dp2vae.ledger import Ledger
from tf_dp2vae.model import DP2VAE
from tf_dp2vae.networks import build_decoder, build_encoder
from tf_dp2vae.optimizers import DPAdam
from tf_dp2vae.pretraining import Dreams, NoPretraining, Public
from tf_dp2vae.priors import NormalPrior
from tf_dp2vae.records import Records, checked_records
from tf_dp2vae.refinement import Refinement
from tf_dp2vae.units import bound_per_unit
from tf_dp2vae.validation import InvalidInputError


def test_evaluating_a_labelled_model_without_labels_is_refused(trained):
    with pytest.raises(InvalidInputError, match="label"):
        trained[0].evaluate(IMAGES, verbose=0)


@pytest.mark.parametrize(
    "callback",
    [
        keras.callbacks.EarlyStopping("loss"),
        keras.callbacks.BackupAndRestore("nowhere"),
        keras.callbacks.ReduceLROnPlateau("loss"),
        keras.callbacks.ModelCheckpoint("never.keras", save_best_only=True),
        type("Stop", (keras.callbacks.EarlyStopping,), {})("loss"),
        type("Saves", (keras.callbacks.Callback,), {"save_best_only": True})(),
    ],
    ids=lambda callback: type(callback).__name__,
)
@pytest.mark.parametrize(
    "given",
    [
        lambda callback: callback,
        lambda callback: [keras.callbacks.History(), callback],
        lambda callback: keras.callbacks.CallbackList([callback]),
        lambda callback: [keras.callbacks.CallbackList([keras.callbacks.CallbackList([callback])])],
        lambda callback: {"first": keras.callbacks.History(), "second": [{"inner": callback}]},
    ],
    ids=["alone", "in a list", "in Keras's list", "in lists of lists", "in tables"],
)
def test_callbacks_that_decide_by_private_metrics_are_refused(callback, given):
    model = tiny_model()
    with pytest.raises(InvalidInputError, match=f"{type(callback).__name__}.*private metric"):
        fit(model, callbacks=given(callback))
    assert model.ledger.events == ()


def test_what_is_no_callback_is_refused():
    model = tiny_model()
    with pytest.raises(InvalidInputError, match="holds a function"):
        fit(model, callbacks=[lambda: None])
    assert model.ledger.events == ()


def batches():
    yield IMAGES[:4], LABELS[:4]


WIDE_RECORDS = Records(np.zeros((48, 12, 12, 1), np.uint8), LABELS, CLASSES)


REFUSED = {
    "sample_weight": ({"sample_weight": np.ones(48)}, "bound"),
    "class_weight": ({"class_weight": {0: 2.0}}, "bound"),
    "validation_split": ({"validation_split": 0.1}, "validation_data"),
    "generator": ({"x": batches(), "y": None}, "generator"),
    "data set": ({"x": tf.data.Dataset.from_tensor_slices(IMAGES).batch(4), "y": None}, "Dataset"),
    "no data": ({"x": None, "y": None}, "arrays"),
    "initial_epoch": ({"initial_epoch": 3}, "ledger"),
    "made up": ({"colour": "red"}, "colour='red'"),
    "batch beyond the records": ({"batch_size": 49}, "49.*48 records"),
    "batch of nothing": ({"batch_size": 0}, "batch_size=0"),
    "no epochs": ({"epochs": 0}, "epochs=0"),
    "no steps": ({"steps_per_epoch": 0}, "steps_per_epoch=0"),
    "labels missing": ({"y": None}, "label"),
    "label outside": ({"y": LABELS + 1}, "0 to 2"),
    "another shape": ({"x": np.zeros((48, 12, 12))}, "12×12×1"),
    "records of another shape": ({"x": WIDE_RECORDS, "y": None}, "12×12×1.*8×8×1"),
    "labels beside records": ({"x": some_records(48)}, "leave y out"),
    "another label set": ({"x": some_records(48, classes=5), "y": None}, "5 classes"),
}


@pytest.mark.parametrize("arguments, words", REFUSED.values(), ids=REFUSED)
def test_what_fit_refuses_costs_nothing(arguments, words):
    model = tiny_model()
    given = {"x": IMAGES, "y": LABELS, "batch_size": 12, "verbose": 0, **arguments}
    with pytest.raises(InvalidInputError, match=words):
        model.fit(**given)
    assert model.ledger.events == () and model.num_records is None


def test_fit_needs_compile_and_train_on_batch_is_refused():
    encoder, decoder = build_encoder(SHAPE, LATENT, width=1), build_decoder(SHAPE, LATENT, width=1)
    model = DP2VAE(encoder, decoder)
    with pytest.raises(InvalidInputError, match="compile"):
        fit(model, labels=None)
    with pytest.raises(InvalidInputError, match="Poisson"):
        model.train_on_batch(IMAGES[:4])
    with pytest.raises(ValueError, match="train the model"):
        model.privacy_statement()


def test_networks_of_float32_are_trained_where_keras_defaults_to_float64():
    """That is the way out that the refusal of float64 gives."""
    keras.config.set_floatx("float64")
    try:
        keras.config.set_dtype_policy("float32")
        model = tiny_model(pretraining=DREAMS, prior=None)
        fit(model)
    finally:
        keras.config.set_floatx("float32")
        keras.config.set_dtype_policy("float32")
    assert model.privacy_statement().holds


def test_networks_that_do_not_fit_together_are_refused():
    with pytest.raises(InvalidInputError, match=r"\[2, 2, 3\]"):
        DP2VAE(build_encoder(SHAPE, 2, width=1), build_decoder(SHAPE, 3, width=1))
    with pytest.raises(InvalidInputError, match="must be equal"):
        DP2VAE(build_encoder((8, 12, 1), 2, width=1), build_decoder(SHAPE, 2, width=1))

    with pytest.raises(InvalidInputError, match="labels of 5 classes, the decoder of 3"):
        DP2VAE(build_encoder(SHAPE, 2, 5, width=1), build_decoder(SHAPE, 2, 3, width=1))
    with pytest.raises(InvalidInputError, match="labels of 3 classes, the decoder of 0"):
        DP2VAE(build_encoder(SHAPE, 2, 3, width=1), build_decoder(SHAPE, 2, width=1))


def test_the_clip_is_the_guarantees_and_another_one_of_the_optimizer_is_refused():
    model = tiny_model(privacy=Privacy(1.0, 1e-5, l2_norm_clip=0.5))
    model.compile(DPAdam(l2_norm_clip=0.1))
    with pytest.raises(InvalidInputError, match=r"l2_norm_clip=0.1.*Privacy\(l2_norm_clip=0.5\)"):
        fit(model)
    assert model.ledger.events == ()
    for optimizer in (DPAdam(l2_norm_clip=0.5), DPAdam()):
        model = tiny_model(privacy=Privacy(1.0, 1e-5, l2_norm_clip=0.5))
        model.compile(optimizer)
        fit(model)
        assert model.optimizer.l2_norm_clip == 0.5


def test_more_than_one_step_at_a_time_is_refused():
    model = tiny_model()
    model.steps_per_execution = 2
    with pytest.raises(InvalidInputError, match="steps_per_execution"):
        fit(model)


@pytest.mark.parametrize(
    "data, words",
    [
        ((IMAGES[:8],), "labels"),
        ((IMAGES[:8, 1:], LABELS[:8]), "not the declared"),
        ((IMAGES[:8], LABELS[:8] + CLASSES), "outside the declared label set"),
        ((IMAGES[:8], LABELS[:8], np.ones(8)), r"must be \(x, y\)"),
        (IMAGES[:8], r"must be \(x, y\)"),
    ],
)
def test_unusable_validation_data_are_refused_before_anything_is_charged(data, words):
    model = tiny_model()
    with pytest.raises(InvalidInputError, match=words):
        fit(model, validation_data=data)
    assert not model.ledger.events and model.ledger.num_records is None


def test_one_callback_needs_no_list_and_a_numpy_number_is_told_what_to_be():
    seen = []
    fit(tiny_model(), callbacks=keras.callbacks.LambdaCallback(on_train_begin=lambda logs: seen.append(True)))
    assert seen
    with pytest.raises(InvalidInputError, match=r"convert it, int\(epochs\)"):
        fit(tiny_model(), epochs=np.int64(2))


def test_checkpoints_in_a_folder_that_is_not_there_are_refused_before_anything_is_spent(tmp_path):
    ledger = Ledger(tmp_path / "ledger")
    with pytest.raises(InvalidInputError, match="does not exist; create it first"):
        fit(tiny_model(checkpoints=Checkpoints(tmp_path / "nowhere"), ledger=ledger))
    assert not ledger.events
    ledger.close()


def test_checkpoints_without_a_ledger_on_disk_are_refused(tmp_path):
    with pytest.raises(InvalidInputError, match=r"could not be resumed.*Ledger\(path\)"):
        fit(tiny_model(checkpoints=Checkpoints(str(tmp_path))))
    assert not list(tmp_path.iterdir())
    ledger = Ledger(tmp_path / "ledger")
    fit(tiny_model(checkpoints=Checkpoints(str(tmp_path), 0), ledger=ledger))
    assert list((tmp_path / "checkpoints").iterdir())
    ledger.close()


def test_an_engine_that_is_not_known_is_refused_before_anything_is_trained():
    with pytest.raises(InvalidInputError, match="engine='fast'.*book-keeping, reference"):
        tiny_model(engine="fast")


def test_pretraining_by_hand_is_refused():
    """The statement knows what `fit` pre-trained on, and of nothing else."""
    model = tiny_model(pretraining=DREAMS)
    data = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(8)
    for fitted in (False, True):
        if fitted:
            fit(model)
        before = model.get_weights()
        with pytest.raises(InvalidInputError, match="for Pretraining.run.*Public"):
            model.pretrain(data, 2, 1e-2)
        assert equal_weights(before, model.get_weights())


def test_public_pretraining_needs_data_alike():
    with pytest.raises(InvalidInputError, match="no data"):
        fit(tiny_model(pretraining=Public(steps=1)))
    wider = Records(np.zeros((300, 8, 9, 1), np.uint8), np.arange(300) % CLASSES, CLASSES)
    for other in (wider, some_records(300, CLASSES - 1), some_records(300, 0)):
        model = tiny_model(pretraining=Public(steps=1, data=other))
        with pytest.raises(InvalidInputError, match="must be alike"):
            fit(model)
        assert not model.ledger.events


def test_public_pretraining_charges_private_steps_alone():
    model = tiny_model(pretraining=Public(steps=1, sleep_steps=0, data=some_records(300, seed=5)))
    fit(model)
    assert [event.mechanism for event in model.ledger.events] == ["clipped gradient sum"]
    assert model.privacy_statement().to_json()["end_to_end"] is True


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_networks_of_reduced_precision_are_refused(policy):
    keras.config.set_dtype_policy(policy)
    try:
        with pytest.raises(InvalidInputError, match="reduced precision.*float32"):
            tiny_model()
    finally:
        keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize("thawed", [False, True])
def test_layer_that_mixes_only_when_it_is_trained_is_refused_once_it_is_thawed(thawed):
    image, label = keras.Input(SHAPE), keras.Input((CLASSES,))
    norm = keras.layers.BatchNormalization(name="norm")
    hidden = keras.layers.Concatenate()([norm(keras.layers.Flatten()(image)), label])
    encoder = keras.Model([image, label], [keras.layers.Dense(LATENT)(hidden), keras.layers.Dense(LATENT)(hidden)])
    norm.trainable = False
    arguments = {"prior": NormalPrior(), "refinement": None}
    model = DP2VAE(encoder, tiny_model().decoder, pretraining=NoPretraining(), **arguments)
    model.compile("dp-adam")
    if thawed:
        norm.trainable = True
        with pytest.raises(InvalidInputError, match="norm .BatchNormalization"):
            fit(model)
        assert model.ledger.events == ()
    else:
        before = norm.get_weights()
        fit(model)
        assert equal_weights(before, norm.get_weights())


class Scaled(CentredOnceTrained):
    """As many weights, and nothing mixed."""

    def call(self, inputs):
        return inputs - self.gain * inputs


@pytest.mark.parametrize("pretraining", [NoPretraining(), DREAMS], ids=["none", "dreams"])
def test_network_that_takes_the_place_of_another_is_looked_at(pretraining):
    def decoder(kind):
        latent, label = keras.Input((LATENT,)), keras.Input((CLASSES,))
        hidden = kind()(keras.layers.Concatenate()([latent, label]))
        return keras.Model([latent, label], keras.layers.Reshape(SHAPE)(keras.layers.Dense(64)(hidden)))

    model = DP2VAE(tiny_model().encoder, decoder(Scaled), pretraining=pretraining, refinement=None)
    model.decoder = decoder(CentredOnceTrained)
    model.compile("dp-adam")
    with pytest.raises(InvalidInputError, match="CentredOnceTrained mixes examples"):
        fit(model)
    assert not any(event.mechanism == "clipped gradient sum" for event in model.ledger.events)


def test_public_data_must_not_be_the_records():
    with some_records(48).opened() as (images, labels):
        first, rest = Records(images[:30], labels[:30], CLASSES), Records(images[30:], labels[30:], CLASSES)
        overlapping = Records(images[20:40], labels[20:40], CLASSES)
    for public in (first, overlapping):
        model = tiny_model(pretraining=Public(steps=1, data=public))
        with pytest.raises(InvalidInputError, match="public data are the records"):
            model.fit(first, batch_size=8, verbose=0)
        assert model.ledger.events == ()
    Public(steps=1, data=rest).check_records(first)


def bounded(images, labels):
    return bound_per_unit(checked_records(images, labels, CLASSES), np.arange(len(images)) // 2, "person", 1)


@pytest.mark.parametrize(
    "made",
    [
        lambda images, labels: checked_records(images, labels, CLASSES),
        lambda images, labels: checked_records(images, labels + 1, CLASSES, invalid="null"),
        lambda images, labels: checked_records(images, labels, CLASSES).joined(
            IMAGES[:2], LABELS[:2], np.ones(2, bool)
        ),
        bounded,
    ],
    ids=["as they are", "some null", "with canaries", "of persons"],
)
@pytest.mark.parametrize("floats", [False, True])
@pytest.mark.filterwarnings("ignore:.*count as null")
def test_public_data_are_known_for_the_records_whatever_was_made_of_these(made, floats):
    images, labels = images_and_labels(48)
    images = images / 255 if floats else images
    public = Public(steps=1, data=checked_records(images, labels, CLASSES))
    with pytest.raises(InvalidInputError, match="public data are the records"):
        public.check_records(made(images, labels))
    public.check_records(made(images.copy(), labels))


def test_networks_are_looked_at_as_they_come_and_again_only_when_what_is_trained_changes(monkeypatch):
    seen = []
    monkeypatch.setattr("tf_dp2vae.model.refuse_mixing", lambda networks: seen.append(networks[0].trainable))
    model = tiny_model(pretraining=Dreams(steps=2, sleep_steps=2))
    fit(model, epochs=2)
    assert seen == [True]
    model.encoder.trainable, model.privacy = False, Privacy(3.0, 1e-5)
    fit(model)
    assert seen == [True, False]


def inner_half(mean):
    """A network's outputs in float32, whose only layer computes in float16."""
    inputs = keras.Input((LATENT,))
    halves = keras.layers.Dense(LATENT, name="halves", dtype=keras.mixed_precision.DTypePolicy("mixed_float16"))
    return keras.layers.Identity(dtype="float32")(keras.Model(inputs, halves(inputs))(mean))


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda image, mean: keras.Model(image, {"mean": mean, "log_variance": mean}), "outputs in a dict"),
        (lambda image, mean: keras.Model({"image": image}, [mean, mean]), "inputs in a dict"),
        (
            lambda image, mean: keras.Model(image, [keras.layers.Dense(LATENT, dtype="float64")(mean)] * 2),
            "compute in float64",
        ),
        (lambda image, mean: keras.Model(image, [inner_half(mean)] * 2), "halves compute in reduced precision"),
    ],
    ids=["dict of outputs", "dict of inputs", "float64", "float16 of a network inside"],
)
def test_networks_that_training_would_stumble_over_are_refused_before_anything_is_spent(change, words):
    image = keras.Input(SHAPE)
    mean = keras.layers.Dense(LATENT)(keras.layers.Flatten()(image))
    with pytest.raises(InvalidInputError, match=words):
        DP2VAE(change(image, mean), build_decoder(SHAPE, LATENT, CLASSES, width=2))


@pytest.mark.parametrize("constants", [{}, {"mean": 0.5, "variance": 0.25}], ids=["adapted", "constants"])
def test_layers_that_adapt_to_data_are_refused_and_constants_are_not(constants):
    """Un-noised means of records would stand in the release."""
    scaling = keras.layers.Normalization(axis=None, invert=True, name="scaling", **constants)
    if not constants:
        scaling.adapt(IMAGES / 255)
    latent, label = keras.Input((LATENT,)), keras.Input((CLASSES,))
    hidden = keras.layers.Dense(int(np.prod(SHAPE)))(keras.layers.Concatenate()([latent, label]))
    decoder = keras.Model([latent, label], scaling(keras.layers.Reshape(SHAPE)(hidden)))
    if constants:
        DP2VAE(build_encoder(SHAPE, LATENT, CLASSES, width=2), decoder)
        return
    with pytest.raises(InvalidInputError, match=r"scaling take what they know .*Normalization\(mean="):
        DP2VAE(build_encoder(SHAPE, LATENT, CLASSES, width=2), decoder)


@pytest.mark.parametrize("by", [{"num_bins": 2}, {"bin_boundaries": [0.5]}], ids=["adapted", "constants"])
def test_bins_that_adapt_to_data_are_refused_and_constants_are_not(by):
    image = keras.Input(SHAPE)
    bins = keras.layers.Discretization(**by, name="bins")
    if "num_bins" in by:
        bins.adapt(IMAGES / 255)
    flat = keras.layers.Flatten()(keras.layers.Rescaling(1.0)(bins(image)))
    encoder = keras.Model(image, [keras.layers.Dense(LATENT)(flat) for _ in range(2)])
    decoder = build_decoder(SHAPE, LATENT, 0, width=2)
    if "bin_boundaries" in by:
        DP2VAE(encoder, decoder)
        return
    with pytest.raises(InvalidInputError, match="bins take what they know"):
        DP2VAE(encoder, decoder)


@pytest.mark.parametrize("engine", ["book-keeping", "reference"])
def test_layer_of_both_networks_is_clipped_and_answered_once(engine):
    """Answered twice it would move the answer by √2 C."""
    shared = keras.layers.Dense(int(np.prod(SHAPE)))
    image, latent = keras.Input(SHAPE), keras.Input((shared.units,))
    hidden = shared(keras.layers.Flatten()(image))
    encoder = keras.Model(image, [keras.layers.Dense(shared.units)(hidden) for _ in range(2)])
    decoder = keras.Model(latent, keras.layers.Reshape(SHAPE)(shared(latent)))
    parts = {"pretraining": NoPretraining(), "prior": NormalPrior(), "refinement": None}
    model = DP2VAE(encoder, decoder, engine=engine, physical_batch_size=4, **parts)
    variables = model.trainable_variables
    assert len(variables) == 6 == len({id(variable) for variable in variables})
    batch = tf.constant(IMAGES[:4] / 255, tf.float32), tf.zeros([4], tf.int32), tf.zeros([4, 1, shared.units])
    mask = tf.constant([1.0, 0.0, 0.0, 0.0])
    sums, _ = make_engine(engine, model.private_networks).clipped_sum(model.losses, batch, mask, variables, 0.5)
    assert global_norm(sums) == pytest.approx(0.5, rel=1e-5)
    model.compile("dp-sgd")
    model.fit(IMAGES, batch_size=4, steps_per_epoch=2, verbose=0)
    assert all(np.isfinite(variable).all() for variable in variables)
    with pytest.raises(ValueError, match="named twice"):
        model.mechanisms.gradient_sum(None, model, None, [*variables, variables[0]], 1.0, 1.0)


def test_decoder_without_a_trainable_weight_is_refused_before_anything_is_charged():
    model = tiny_model(pretraining=DREAMS, prior=None)
    model.decoder.trainable = False
    with pytest.raises(InvalidInputError, match="no weight of .* is trainable.*thaw"):
        fit(model)
    assert not model.ledger.events


def test_release_that_nothing_would_use_is_refused():
    with pytest.raises(InvalidInputError, match="steps=0 with candidates=1.*for nothing"):
        Refinement(steps=0, candidates=1)
    with pytest.raises(InvalidInputError, match="steps=0 .*unlabelled"):
        tiny_model(0, refinement=Refinement(steps=0))


def test_labels_for_a_model_without_labels_are_refused_by_their_name():
    with pytest.raises(InvalidInputError, match="no label input and y was given"):
        fit(tiny_model(classes=0))


@pytest.mark.parametrize("name", ["sample", "sample_labels"])
def test_fewer_than_no_samples_are_refused(trained, name):
    model, _ = trained
    arguments = (-1, 1, 1) if name == "sample" else (-1, 1)
    with pytest.raises(tf.errors.InvalidArgumentError, match="num must be at least 0"):
        getattr(model.sampler(), name)(*arguments)


UNUSABLE_IMAGES = {
    "int64 pixels": (IMAGES.astype(np.int64), LABELS, "uint8"),
    "floats beyond 1": (IMAGES.astype(np.float32), LABELS, "scale"),
    "labels outside": (IMAGES, LABELS + 1, "0 to 2"),
    "a column of labels": (IMAGES, LABELS[:, None], "ravel"),
    "one-hot labels": (IMAGES, np.eye(CLASSES)[LABELS], "one whole number"),
    "another shape": (np.zeros((48, 12, 12)), LABELS, "12×12×1"),
}


@pytest.mark.parametrize("images, labels, words", UNUSABLE_IMAGES.values(), ids=UNUSABLE_IMAGES)
def test_what_fit_refuses_of_arrays_is_not_measured_either(images, labels, words):
    model = tiny_model()
    with pytest.raises(InvalidInputError, match=words):
        model.evaluate(images, labels, verbose=0)
    with pytest.raises(InvalidInputError, match=words):
        model.predict((images, labels), verbose=0)


def test_weights_of_metrics_are_refused_by_name():
    model = tiny_model()
    with pytest.raises(InvalidInputError, match="sample_weight"):
        model.evaluate(IMAGES, LABELS, sample_weight=np.ones(48), verbose=0)
    with pytest.raises(InvalidInputError, match="sample_weight"):
        model.test_on_batch(IMAGES, LABELS, sample_weight=np.ones(48))
    assert np.isfinite(model.test_on_batch(IMAGES, LABELS)).all()


def test_labels_beside_an_unlabelled_model_are_refused():
    model = tiny_model(0)
    with pytest.raises(InvalidInputError, match="leave y out"):
        model.evaluate(IMAGES, LABELS, verbose=0)


@pytest.mark.parametrize("seed", [-1, None, 10**6, 0.5, np.int64(3)])
def test_a_seed_that_cannot_be_used_is_refused_before_anything_is_charged(seed):
    with pytest.raises(InvalidInputError, match="seed="):
        tiny_model(seed=seed)


class Shifted(keras.layers.Layer):
    """Cannot be copied: what its constructor takes stands in no config."""

    def __init__(self, by, **kwargs):
        super().__init__(**kwargs)
        self.by = by

    def call(self, inputs):
        return inputs + self.by


@pytest.mark.parametrize(
    "layer",
    [keras.layers.Lambda(lambda logits: 2 * logits), Shifted(tf.constant(1.0))],
    ids=["Lambda", "a layer of one's own"],
)
def test_a_decoder_that_sleep_could_not_copy_is_refused_when_it_is_built(layer):
    decoder = build_decoder(SHAPE, LATENT, CLASSES, width=2)
    changed = keras.Model(decoder.inputs, layer(decoder.outputs[0]), name="mine")
    with pytest.raises(InvalidInputError, match="mine cannot be copied.*get_config"):
        DP2VAE(build_encoder(SHAPE, LATENT, CLASSES, width=1), changed)


@pytest.mark.parametrize("shape", [(64,), (8, 8), (None, None, 1)], ids=str)
def test_networks_of_no_images_are_refused_with_an_input_that_would_do(shape):
    image, latent = keras.Input(shape), keras.Input((LATENT,))
    flat = keras.layers.Flatten()(image) if None not in shape else keras.layers.GlobalAveragePooling2D()(image)
    encoder = keras.Model(image, [keras.layers.Dense(LATENT)(flat), keras.layers.Dense(LATENT)(flat)])
    if None in shape:
        grid = keras.layers.Reshape((1, 1, LATENT))(latent)
        decoder = keras.Model(latent, keras.layers.Conv2DTranspose(1, 8)(grid))
        encoder = keras.Model(image, encoder(image))
    else:
        decoder = keras.Model(latent, keras.layers.Reshape(shape)(keras.layers.Dense(64)(latent)))
    with pytest.raises(InvalidInputError, match=r"no image of a fixed size.*keras.Input\(\(28, 28, 1\)\)"):
        DP2VAE(encoder, decoder)


@pytest.mark.parametrize(
    "build, name",
    [
        (lambda: Privacy(epsilon=np.int64(1)), "epsilon"),
        (lambda: Privacy(delta=np.float32(1e-5)), "delta"),
        (lambda: Dreams(learning_rate=np.float32(1e-3)), "learning_rate"),
        (lambda: Dreams(statistics_share=np.float32(0.1)), "statistics_share"),
        (lambda: Checkpoints(seconds=np.float32(1)), "checkpoint_seconds"),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_numbers_of_numpy_are_refused_with_the_conversion(build, name):
    with pytest.raises(InvalidInputError, match=rf"{name}=.* must be a number: convert it, float\({name}\)"):
        build()


@pytest.mark.parametrize("value", [True, "1", None])
def test_what_is_no_number_is_no_epsilon(value):
    with pytest.raises(InvalidInputError, match="epsilon=.* must be a number"):
        Privacy(epsilon=value)


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf")])
def test_checkpoints_at_no_time_are_refused(seconds):
    with pytest.raises(InvalidInputError, match="checkpoint_seconds=.* at least 0"):
        Checkpoints(seconds=seconds)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"pretraining": "dreams"}, "pretraining='dreams' is no Pretraining: pass Dreams"),
        ({"ledger": "ledger.jsonl"}, r"ledger='ledger.jsonl' is no Ledger: open its file, Ledger\(path\)"),
        ({"checkpoints": "private"}, r"checkpoints='private' is no Checkpoints: pass Checkpoints\(folder\)"),
        ({"privacy": 1.0}, "privacy=1.0 is no Privacy"),
        ({"prior": "gaussian"}, "prior='gaussian' is no Prior"),
        ({"refinement": "none"}, "refinement='none' is no Refinement: .*None for none"),
        ({"augmentation": 2}, "augmentation=2 is no Shifts"),
    ],
)
def test_a_name_or_a_path_in_place_of_an_object_is_told_what_to_pass(arguments, words):
    with pytest.raises(InvalidInputError, match=words):
        tiny_model(**arguments)


def test_public_data_as_plain_arrays_are_told_how_to_become_records():
    with pytest.raises(InvalidInputError, match="data=a tuple is no Records: .*checked_records"):
        Public(data=(IMAGES, LABELS))


@pytest.mark.parametrize(
    "layer",
    [
        lambda: keras.layers.Dense(64, kernel_regularizer="l2"),
        lambda: keras.layers.Dense(64, bias_regularizer=keras.regularizers.L1(0.1)),
        lambda: keras.layers.Dense(64, activity_regularizer="l2"),
        lambda: Penalised(64),
        lambda: Penalised(64, only_in_training=True),
    ],
    ids=["kernel", "bias", "activity", "add_loss", "add_loss in training"],
)
def test_layers_with_losses_of_their_own_are_refused(layer):
    """The private loss is the records' alone, so they would be left out without a word."""
    latent, label = keras.Input((LATENT,)), keras.Input((CLASSES,))
    odd = layer()
    hidden = odd(keras.layers.Concatenate()([latent, label]))
    decoder = keras.Model([latent, label], keras.layers.Reshape(SHAPE)(hidden))
    with pytest.raises(InvalidInputError, match=f"layers {odd.name} have regularizers or losses of their own"):
        DP2VAE(tiny_model().encoder, decoder)
    assert not odd._losses, "the look leaves losses behind"


class Penalised(keras.layers.Dense):
    def __init__(self, units, only_in_training=False, **kwargs):
        super().__init__(units, **kwargs)
        self.only_in_training = only_in_training

    def call(self, inputs, training=None):
        outputs = super().call(inputs)
        if training or not self.only_in_training:
            self.add_loss(tf.reduce_sum(tf.square(outputs)))
        return outputs


def test_a_frozen_layer_is_not_penalised_and_networks_are_looked_at_without_a_word(recwarn):
    latent = keras.Input((LATENT,))
    frozen = keras.layers.Dense(64, kernel_regularizer="l2", trainable=False)
    decoder = keras.Model(latent, keras.layers.Reshape(SHAPE)(keras.layers.Dense(64)(frozen(latent))))
    DP2VAE(build_encoder(SHAPE, LATENT, width=1), decoder)
    assert not recwarn.list and not decoder.losses


def test_an_optimizer_of_another_model_is_refused_before_anything_is_charged():
    first, second = tiny_model(), tiny_model()
    fit(first)
    second.compile(first.optimizer)
    with pytest.raises(InvalidInputError, match="Compile with a new optimizer"):
        fit(second)
    assert second.ledger.events == ()


def test_an_optimizer_of_before_a_layer_was_frozen_is_refused_and_of_the_same_weights_is_not():
    model = tiny_model()
    fit(model)
    with pytest.raises(BudgetExceededError):
        fit(model)
    charged = model.ledger.events
    next(layer for layer in model.decoder.layers if layer.variables).trainable = False
    with pytest.raises(InvalidInputError, match="frozen or thawed. Compile with a new optimizer"):
        fit(model)
    assert model.ledger.events == charged


def test_a_model_that_was_built_for_several_replicas_is_refused():
    class Two:
        num_replicas_in_sync = 2

    model = tiny_model()
    model._distribute_strategy = Two()
    with pytest.raises(InvalidInputError, match="2 replicas would each add noise"):
        fit(model)
    assert model.ledger.events == ()


def test_a_sequential_decoder_is_a_functional_one():
    decoder = keras.Sequential([keras.Input((LATENT,)), keras.layers.Dense(64), keras.layers.Reshape(SHAPE)])
    model = DP2VAE(build_encoder(SHAPE, LATENT, width=1), decoder, pretraining=DREAMS)
    model.compile("dp-adam")
    fit(model, labels=None)
    assert model.privacy_statement().holds
