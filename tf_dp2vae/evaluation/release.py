"""Reading a release as its users would: the SavedModel and the statement, nothing else."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tf_dp2vae.accounting import ACCOUNTANTS
from tf_dp2vae.checksums import verify_checksums
from tf_dp2vae.validation import InvalidInputError, check, check_choice, check_readable_by_tensorflow

_CHUNK, _TRIED = 1000, 100


@dataclass(frozen=True)
class Release:
    """What a run published.

    Attributes:
      statement: the content of `privacy.json`.
      sampler: the SavedModel.
      num_classes: size of the label set, 0 where samples have no labels.
      image_shape: (height, width, channels) of a sample.
    """

    statement: dict[str, Any]
    sampler: Any
    num_classes: int
    image_shape: tuple[int, int, int]

    def samples(self, num: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """`num` images in [0, 1] and their labels, at the released class frequencies."""
        # Seeds of chunks must not meet those of another call: 7,919 is beyond any count of chunks here.
        seeds = [(seed * 7_919 + chunk) % 2**31 for chunk in range(-(-num // _CHUNK))]
        images, labels = zip(*(self.sampler.sample_records(_CHUNK, seed) for seed in seeds))
        return np.concatenate(images)[:num], np.concatenate(labels)[:num]


def read_release(run: Path) -> Release:
    """The release of a run's folder.

    Raises:
      InvalidInputError: the folder is no run, or its release is incomplete or damaged.
    """
    folder = run / "release"
    check(os.path.isdir(folder), f"{run} is no run: it has no folder release/ (train.py makes runs/<name>/release).")
    check_readable_by_tensorflow("release", folder)
    statement = folder / "privacy.json"
    try:
        check(statement.is_file(), f"{folder} has no privacy.json: a release without its statement is not evaluated.")
        content = json.loads(statement.read_text(encoding="utf-8"))
        epsilon, end_to_end, delta = content["epsilon"], content["end_to_end"], content["delta"]
        claims = content, content.get("given_encoder") or {}
        stated = [claim.get(name) for claim in claims for name in ("epsilon", "epsilon_rdp", "epsilon_pld")]
        numbers = [delta, *(number for number in stated if number is not None)]
        check_choice(ACCOUNTANTS, accountant=content["accountant"])
    except InvalidInputError:
        raise
    except PermissionError as error:
        raise InvalidInputError(f"{statement} cannot be read ({error.strerror}): give access.") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise InvalidInputError(f"{statement} is damaged ({error}): train again.") from error
    read = all(isinstance(number, (int, float)) and number >= 0 for number in numbers)
    check(read, f"{statement} is damaged: it states numbers below 0 or none at all.")
    check((epsilon is None) or end_to_end, f"{statement} is damaged: it states an epsilon without a guarantee.")
    verify_checksums(folder)
    try:
        sampler = tf.saved_model.load(str(folder / "sampler"))
        num_classes = int(sampler.num_classes())
        height, width, channels = (int(size) for size in sampler.image_shape())
        images, labels = (np.asarray(part) for part in sampler.sample_records(_TRIED, 0))
        sound = images.shape == (_TRIED, height, width, channels) and bool(np.all((images >= 0) & (images <= 1)))
        sound &= labels.shape == (_TRIED,) and labels.dtype.kind in "ui"
        sound &= bool(np.all((labels >= 0) & (labels < max(num_classes, 1))))
    except Exception as error:  # a SavedModel is a program: a damaged one raises whatever it likes
        raise InvalidInputError(
            f"{folder / 'sampler'} is no sampler of ours, or was tampered with: train again."
        ) from error
    check(
        sound,
        f"{folder / 'sampler'} does not sample labels and images in [0, 1], so it was tampered with: train again.",
    )
    return Release(content, sampler, num_classes, (height, width, channels))
