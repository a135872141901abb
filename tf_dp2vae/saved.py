"""A model in a .keras file: what is saved of it, and how it is read from a file that somebody else may have touched.

A saved model keeps what it has asked of the records, so that its guarantee comes back with it.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from importlib import import_module
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras

from tf_dp2vae.accounting import Event, merged
from tf_dp2vae.validation import InvalidInputError, check, first_line

if TYPE_CHECKING:
    from tf_dp2vae.ledger import Ledger
    from tf_dp2vae.model import DP2VAE

_MOST_BYTES = 2**31
_OBJECTS = ("encoder", "decoder", "privacy", "pretraining", "prior", "refinement", "augmentation")
_VALUES = ("draws", "engine", "physical_batch_size", "seed", "trials")
"""The constructor's arguments, apart from those that belong to one process: ledger, checkpoints, entropy."""
_PAST, _RUN = "past", "run"


def config_of(model: DP2VAE) -> dict[str, Any]:
    """What the model's constructor takes, and what was done with the model so far."""
    serialize = keras.saving.serialize_keras_object
    return {
        "name": model.name,
        **{name: serialize(getattr(model, name)) for name in _OBJECTS},
        **{name: getattr(model, name) for name in _VALUES},
        _PAST: {
            "num_records": model.num_records,
            "unit": serialize(model.unit),
            "audit_canaries": model.audit_canaries,
            "events": [{**event.to_json(), _RUN: run} for run, event in _charged(model.ledger)],
            "shared_ledger": model.ledger.shared,
            "ledger_in_file": model.ledger.path is not None or model.ledger.detached,
            "secure_noise": model.secure_noise,
        },
    }


def _charged(ledger: Ledger) -> Iterator[tuple[str, Event]]:
    """What each run charged, in order; a run's equal events are one where no other run comes between them."""
    for run, charges in groupby(ledger.charges, key=lambda charge: charge.run):
        yield from ((run, event) for event in merged(charge.event for charge in charges))


def model_of(cls: type[DP2VAE], config: dict[str, Any], custom_objects: Any = None) -> DP2VAE:
    """The inverse of `config_of`."""
    restore = keras.saving.deserialize_keras_object
    arguments = {name: value for name, value in config.items() if name != _PAST}
    model = cls(**{**arguments, **{name: restore(config[name], custom_objects) for name in _OBJECTS}})
    past = config[_PAST]
    model.unit = restore(past["unit"], custom_objects)
    model.ledger.bind(past["num_records"], model.unit.in_full)
    for event in past["events"]:
        model.ledger.run = event.get(_RUN, "")  # none in older files
        model.ledger.charge(Event.from_json(event))
    model.ledger.shared, model.ledger.detached = past["shared_ledger"], past["ledger_in_file"]
    model.secure_noise = past["secure_noise"]
    model.num_records, model.audit_canaries = past["num_records"], past["audit_canaries"]
    return model


def load(path: str | os.PathLike[str], custom_objects: dict[str, Any] | None = None) -> DP2VAE:
    """The model that `model.save(path)` wrote, with its ledger and its guarantee.

    Checks the archive's own checksums and its unpacked size before anything is read from it; no Python code in it runs
    (Keras's safe mode). `keras.models.load_model` reads the file too, without those checks, and once something of
    `tf_dp2vae` was used: `import tf_dp2vae` alone makes no class known to Keras.

    Args:
      path: a .keras file.
      custom_objects: classes and functions by name, which the networks are made of and Keras does not know.

    Raises:
      InvalidInputError: the file is missing, damaged, too large or holds another kind of model.
    """
    import_module("tf_dp2vae.baselines")  # which nothing else here imports, and whose classes a model may hold
    from tf_dp2vae.model import DP2VAE

    file = Path(path)
    try:
        check(file.is_file(), f"model file {file} does not exist: name a .keras file that does.")
        with zipfile.ZipFile(file) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
            check(
                unpacked <= _MOST_BYTES,
                f"model file {file} unpacks to {unpacked:,} bytes, more than {_MOST_BYTES:,}: it is no model of ours.",
            )
            damaged = archive.testzip()
        check(damaged is None, f"model file {file} is damaged in {damaged}: save the model again.")
        model: Any = keras.saving.load_model(file, custom_objects=custom_objects)
    except InvalidInputError:
        raise
    except Exception as error:  # a damaged file raises whatever the zip, JSON, HDF5 and Keras readers raise
        raise InvalidInputError(
            f"model file {file} cannot be read ({first_line(error)}): save the model again, or, if it has layers of your "
            "own, pass them as custom_objects."
        ) from error
    check(isinstance(model, DP2VAE), f"model file {file} holds a {type(model).__name__}: a DP2VAE is needed.")
    return model
