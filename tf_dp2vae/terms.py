"""The terms of a run: all that its guarantee and its result depend on, by name; a resume under others is refused."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import keras

from tf_dp2vae.records import Records
from tf_dp2vae.validation import check

if TYPE_CHECKING:
    from tf_dp2vae.model import DP2VAE

Terms = dict[str, Any]
"""Names to numbers, words and digests, as JSON holds them. Digests of records are private."""


def terms_of(model: DP2VAE, records: Records, batch_size: int, rounds: int, steps_per_round: int) -> Terms:
    """What a run on these records must not change before it ends."""
    public = getattr(model.pretraining, "data", None)
    terms = {
        "num_records": records.num_records,
        "records": records.fingerprint(),
        "public records": None if public is None else public.fingerprint(),
        "unit": records.unit.adjacency,
        "max_per_unit": records.unit.max_per_unit,
        "secure noise": model.secure_noise,
        "image_shape": records.image_shape,
        "num_classes": records.num_classes,
        "encoder": _network(model.encoder),
        "decoder": _network(model.decoder),
        **asdict(model.privacy),
        "batch_size": batch_size,
        "rounds": rounds,
        "steps in a round": steps_per_round,
        "draws": model.draws,
        "augmentation": None if model.augmentation is None else asdict(model.augmentation),
        "seed": model.seed,
        **_named("pretraining", model.pretraining, model.pretraining.get_config()),
        **_named("prior", model.prior, model.prior.get_config()),
        **_named("refinement", model.refinement, {} if model.refinement is None else model.refinement.get_config()),
        **_named("optimizer", model.optimizer, _optimizer(model.optimizer)),
    }
    return json.loads(json.dumps(terms, default=str))


def check_same_terms(before: Terms, now: Terms) -> None:
    """Refuses to go on under other terms.

    Raises:
      InvalidInputError: every difference is named.
    """
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    differences = "; ".join(f"{name} was {_short(before.get(name))}, is now {_short(now.get(name))}" for name in names)
    check(
        not names, f"the run cannot go on under other terms ({differences}): resume it as it was, or start a new run."
    )


def _named(what: str, thing: Any, config: dict[str, Any]) -> Terms:
    return {what: type(thing).__name__, **{f"{what} {name}": value for name, value in config.items()}}


def _optimizer(optimizer: Any) -> dict[str, Any]:
    """Without what `fit` sets from the plan."""
    planned = ("name", "l2_norm_clip", "noise_multiplier", "expected_batch_size")
    return {name: value for name, value in optimizer.get_config().items() if name not in planned}


def _network(network: keras.Model) -> str:
    """Size and digest. Layers' names are left out: Keras counts them up within a process."""
    layers = [
        [type(layer).__name__, {name: value for name, value in layer.get_config().items() if name != "name"}]
        for layer in network.layers
    ]
    shapes = [tuple(variable.shape) for variable in network.variables]
    digest = hashlib.sha256(json.dumps([layers, shapes], default=str).encode()).hexdigest()
    return f"{network.count_params():,} weights, digest {digest[:16]}"


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:16]}…" if len(text) == 64 else text
