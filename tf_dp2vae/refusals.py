"""What a model and its `fit` refuse, each with the reason and the way out."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

from tf_dp2vae.accounting import Privacy
from tf_dp2vae.augmentation import Shifts
from tf_dp2vae.checkpoints import Checkpoints
from tf_dp2vae.ledger import Ledger
from tf_dp2vae.pretraining import Pretraining
from tf_dp2vae.priors import NormalPrior, Prior
from tf_dp2vae.records import Records, checked_records
from tf_dp2vae.refinement import Refinement
from tf_dp2vae.taps import is_graph
from tf_dp2vae.validation import InvalidInputError, check, check_kind, check_whole, first_line, times

if TYPE_CHECKING:
    from tf_dp2vae.model import DP2VAE


_NARROW = ("float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")


def _adapts(layer: keras.Layer) -> bool:
    """Whether the layer has an `adapt`, and no constants in its place."""
    if isinstance(layer, keras.layers.Discretization):
        return layer.num_bins is not None
    constants = (getattr(layer, name, None) for name in ("input_mean", "input_vocabulary"))
    return callable(getattr(layer, "adapt", None)) and all(constant is None for constant in constants)


def _refuse_penalties(network: keras.Model) -> None:
    """Refuses what Keras would add to the loss for a layer's sake."""
    layers = [layer for layer in network._flatten_layers() if not is_graph(layer)]
    inputs = keras.tree.map_structure(
        lambda tensor: tf.TensorSpec([1, *tensor.shape[1:]], tensor.dtype), _graph(network)._inputs_struct
    )
    # Traced, not run: only a call in training tells which layers call add_loss.
    tf.function(lambda given: network(given, training=True), autograph=False).get_concrete_function(inputs)
    penalised = [
        layer.name
        for layer in layers
        if layer._losses or any(variable.regularizer for variable in layer.trainable_variables)
    ]
    network._clear_losses()
    check(
        not penalised,
        f"layers {', '.join(penalised)} have regularizers or losses of their own, which belong to no record, so no clip "
        "bounds them and the training leaves them out: build the layers without.",
    )


def _graph(network: keras.Model) -> keras.Model:
    """The functional model, which a Sequential holds within."""
    return getattr(network, "_functional", None) or network


def check_networks(encoder: keras.Model, decoder: keras.Model) -> int:
    """The number of classes of a decoder, 0 without a label input, after checking that the two networks fit together.

    Raises:
      InvalidInputError: they are no functional models, compute in reduced precision, adapt to data, have losses of their
        own, read no images, their shapes differ, or the decoder cannot be copied.
    """
    for network in (encoder, decoder):
        check(
            isinstance(network, keras.Model) and bool(getattr(network, "inputs", None)),
            f"{getattr(network, 'name', network)!r} is no functional Keras model: build it with keras.Model(inputs, "
            "outputs).",
        )
        check(
            is_graph(network),
            f"{network.name} is a {type(network).__name__} with a call of its own, which no look at its layers sees: build "
            "it with keras.Model(inputs, outputs) and put what the call does into a layer.",
        )
        layers = network._flatten_layers()
        narrow = [layer.name for layer in layers if layer.compute_dtype in _NARROW]
        check(
            not narrow,
            f"layers {', '.join(narrow)} compute in reduced precision, in which a clip is no bound: build the networks "
            "under keras.config.set_dtype_policy('float32').",
        )
        wide = [layer.name for layer in layers if layer.compute_dtype == "float64"]
        check(
            not wide,
            f"layers {', '.join(wide)} compute in float64, images and latents are float32: build the networks under "
            "keras.config.set_dtype_policy('float32').",
        )
        adapted = [layer.name for layer in layers if _adapts(layer)]
        check(
            not adapted,
            f"layers {', '.join(adapted)} take what they know from data by adapt(), perhaps from records and without noise: "
            "give them constants, as in keras.layers.Normalization(mean=0.5, variance=0.25).",
        )
        structures = {what: getattr(_graph(network), f"_{what}_struct") for what in ("inputs", "outputs")}
        named = [what for what, structure in structures.items() if isinstance(structure, dict)]
        check(
            not named,
            f"{network.name} has its {' and '.join(named)} in a dict, which has no order: build it with lists, "
            "[image, label] → [mean, log_variance] and [latent, label] → logits.",
        )
    check(
        len(encoder.outputs) == 2, f"the encoder has {len(encoder.outputs)} outputs: mean and log-variance are needed."
    )
    latents = [int(output.shape[-1]) for output in encoder.outputs] + [int(decoder.inputs[0].shape[-1])]
    check(len(set(latents)) == 1, f"latent sizes differ (mean, log-variance, decoder input): {latents}.")
    image, logits = tuple(encoder.inputs[0].shape[1:]), tuple(decoder.outputs[0].shape[1:])
    check(
        len(image) == 3 and None not in image,
        f"the encoder reads {times(image)}, which is no image of a fixed size: build it with an input of (height, width, "
        "channels), such as keras.Input((28, 28, 1)), and the decoder with such an output.",
    )
    check(image == logits, f"the encoder reads images of {image}, the decoder writes {logits}: they must be equal.")
    sizes = [int(network.inputs[1].shape[-1]) if len(network.inputs) > 1 else 0 for network in (encoder, decoder)]
    check(
        sizes[0] in (0, sizes[1]),
        f"the encoder reads labels of {sizes[0]} classes, the decoder of {sizes[1]}: build both for the same label set.",
    )
    try:
        keras.models.clone_model(decoder)
    except Exception as error:  # whatever a layer's constructor raises
        raise InvalidInputError(
            f"{decoder.name} cannot be copied, as sleep and refinement do ({first_line(error)}): build it from Keras's "
            "layers without Lambda, or give layers of your own a get_config that tells what they take."
        ) from error
    inputs = max(len(encoder.inputs), len(decoder.inputs))
    check(inputs <= 2, f"a network has {inputs} inputs: an image or a latent, and at most a one-hot label.")
    for network in (encoder, decoder):
        _refuse_penalties(network)
    return sizes[1]


_KERAS_DEFAULTS = {"shuffle": True, "initial_epoch": 0, "validation_split": 0.0, "validation_freq": 1}
_REFUSED = {
    "validation_split": "it would set records aside after N was counted; split first and pass validation_data",
    "sample_weight": "a weight multiplies a record's contribution after its bound was agreed",
    "class_weight": "a weight multiplies a record's contribution after its bound was agreed",
    "shuffle": "batches are Poisson samples, drawn afresh each step",
    "initial_epoch": "a continued run has its own budget; share a ledger instead",
}


def refuse_unsupported(arguments: dict[str, Any]) -> None:
    """Refuses arguments of Keras's `fit` that would void the guarantee, saying why; Keras's own defaults pass."""
    for name, value in arguments.items():
        plain = isinstance(value, (bool, int, float, str))
        left_alone = value is None or value is False or (plain and value == _KERAS_DEFAULTS.get(name))
        shown = repr(value) if plain else type(value).__name__
        check(left_alone, f"fit({name}={shown}) is refused: {_REFUSED.get(name, 'not supported')}. Leave it out.")


_PRIVATE_CONTROL = (
    keras.callbacks.EarlyStopping,
    keras.callbacks.ReduceLROnPlateau,
    keras.callbacks.TerminateOnNaN,
    keras.callbacks.BackupAndRestore,
)


def listed(callbacks: Any) -> list[keras.callbacks.Callback]:
    """The callbacks in what `fit` may be given: none, one, or whatever Keras finds them in, its `CallbackList` too.

    Raises:
      InvalidInputError: something among them is no callback.
    """
    if isinstance(callbacks, keras.callbacks.CallbackList):
        return listed(callbacks.callbacks)
    if isinstance(callbacks, keras.callbacks.Callback):
        return [callbacks]
    parts = [] if callbacks is None else keras.tree.flatten(callbacks)
    check(
        parts != [callbacks], f"callbacks holds a {type(callbacks).__name__}, which is no Keras callback: leave it out."
    )
    return [callback for part in parts for callback in listed(part)]


def refuse_private_control(callbacks: list[keras.callbacks.Callback]) -> None:
    """Refuses Keras's callbacks that let a private metric decide what is released, or go on with what another ledger paid.

    Raises:
      InvalidInputError: naming the callbacks and why.
    """
    by_type = [callback for callback in callbacks if isinstance(callback, _PRIVATE_CONTROL)]
    saving = [callback for callback in callbacks if getattr(callback, "save_best_only", False)]
    names = ", ".join(dict.fromkeys(type(callback).__name__ for callback in [*by_type, *saving]))
    check(
        not names,
        f"callbacks {names} would stop, save or change rates by a private metric, or take up weights that another run paid "
        "for, which no event on the ledger covers: leave them out, fix the number of steps beforehand, and resume by "
        "Checkpoints.",
    )


_KINDS = {
    "privacy": (Privacy, "pass Privacy(epsilon=1.0, delta=1e-5)"),
    "pretraining": (Pretraining, "pass Dreams(), Public(data=…), NoPretraining() or another of its classes"),
    "prior": (Prior, "pass GaussianPrior() or NormalPrior()"),
    "refinement": (Refinement, "pass Refinement(), None for none, or leave it out"),
    "augmentation": (Shifts, "pass Shifts(pixels)"),
    "ledger": (Ledger, "open its file, Ledger(path)"),
    "checkpoints": (Checkpoints, "pass Checkpoints(folder)"),
}


def check_kinds(**arguments: Any) -> None:
    """Refuses a name or a path where a model takes an object that is made of it; None stands for the default."""
    for name, value in arguments.items():
        kind, way_out = _KINDS[name]
        check_kind(kind, way_out, **{name: value})


def check_parts(pretraining: Pretraining, prior: Prior, refinement: Refinement | None, num_classes: int) -> None:
    """Refuses a prior or a refinement that the pre-training leaves no room for, or that would pay for nothing."""
    name = type(pretraining).__name__
    check(
        isinstance(prior, NormalPrior) or not pretraining.is_whole_training,
        f"pretraining {name} sets the latent prior itself: leave prior out.",
    )
    check(
        refinement is None or pretraining.is_refined,
        f"pretraining {name} trains no decoder to refine: leave refinement out.",
    )
    check(
        refinement is None or refinement.steps > 0 or num_classes > 0,
        "refinement with steps=0 leaves a judge alone, which unlabelled samples have no use for, and would pay for a "
        "release: leave refinement out (--refine-share 0), or let it match.",
    )


def check_ready(model: DP2VAE) -> None:
    """Refuses a model that is not compiled, or compiled for a way of stepping that the ledger could not follow."""
    check(model.compiled, "call compile(optimizer='dp-adam') before fit.")
    check(model.steps_per_execution == 1, "steps_per_execution must be 1: each private step is charged by itself.")
    networks = model.private_networks
    check(
        model.pretraining.is_whole_training or any(network.trainable_variables for network in networks),
        f"no weight of {' and '.join(network.name for network in networks)} is trainable, so the private phase would have "
        "nothing to train: thaw a layer (layer.trainable = True).",
    )
    model.optimizer.check_clip(model.privacy.l2_norm_clip)
    model.ledger.refuse_detached()
    check(
        model.checkpoints.folder is None or model.ledger.path is not None,
        f"a run with checkpoints in {model.checkpoints.folder} and its ledger in memory could not be resumed: give it "
        "ledger=Ledger(path).",
    )
    model.optimizer.check_variables(model.trainable_variables)
    strategies = tf.distribute.get_strategy(), model.distribute_strategy
    replicas = max(strategy.num_replicas_in_sync for strategy in strategies)
    check(replicas == 1, f"{replicas} replicas would each add noise and sum it: build and train the model under one.")


def holds_images(x: Any) -> bool:
    """Whether x is `Records` or an array, and no dataset or generator."""
    return isinstance(x, Records) or hasattr(x, "__array__")


def refuse_weights(sample_weight: Any) -> None:
    """Refuses weights of images in metrics."""
    check(sample_weight is None, "sample_weight is refused: metrics are means over all images. Leave it out.")


def as_records(x: Any, y: Any, num_classes: int, image_shape: tuple[int, ...]) -> Records:
    """The records of a model's `fit`, checked against its label set and image shape."""
    if isinstance(x, Records):
        check(y is None, "x is a Records, which holds its labels: leave y out.")
        check(
            x.image_shape == image_shape,
            f"the records are images of {times(x.image_shape)}, the networks are for {times(image_shape)}: build "
            "networks for the records.",
        )
        records = x
    else:
        check(holds_images(x), f"x is a {type(x).__name__}: Poisson sampling needs arrays, no generators or datasets.")
        check(
            num_classes > 0 or y is None,
            "the model has no label input and y was given: leave y out, or build the decoder with a label input.",
        )
        records = checked_records(x, y, num_classes, image_shape)
    check(
        bool(records.num_classes) == bool(num_classes),
        f"the model has {num_classes} classes and the records {records.num_classes}: pass labels to a model with a "
        "label input, and none to one without.",
    )
    check(
        records.num_classes == num_classes,
        f"the records declare {records.num_classes} classes, the decoder has room for {num_classes}.",
    )
    return records


def check_sizes(records: Records, batch_size: int, epochs: int) -> None:
    """Refuses batches that are larger than the data, and rounds that are none."""
    check_whole(batch_size=batch_size, epochs=epochs)
    check(
        batch_size <= records.num_units,
        f"batch_size={batch_size} exceeds the {records.num_units} {records.unit.plural}: choose at most "
        f"{records.num_units}.",
    )


def warn_about_delta(delta: float, records: Records) -> None:
    """Warns where δ lets a mechanism pass that publishes outright what the guarantee is about."""
    if delta >= 1 / records.num_units:
        warnings.warn(
            f"delta={delta:g} is not below 1/N = {1 / records.num_units:.2g} (N = {records.num_units} "
            f"{records.unit.plural}): a mechanism that publishes one of them at random would pass. Lower delta (--delta).",
            stacklevel=3,
        )
