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
from tf_dp2vae.validation import InvalidInputError, check, check_choice

_CHUNK = 1000


@dataclass(frozen=True)
class Release:
    """What a run published.

    Attributes:
      statement: the content of `privacy.json`.
      sampler: the SavedModel.
      conditional: whether samples are drawn for a label.
      image_shape: (height, width, channels) of a sample.
    """

    statement: dict[str, Any]
    sampler: Any
    conditional: bool
    image_shape: tuple[int, int, int]

    def samples(self, num: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """`num` images in [0, 1] and their labels, at the released class frequencies, in random order."""
        labels = np.asarray(self.sampler.sample_labels(num, seed))
        images = np.concatenate(
            [self._of_label(int(label), int((labels == label).sum()), seed) for label in np.unique(labels)]
        )
        order = np.random.default_rng(seed).permutation(num)
        return images[order], np.sort(labels)[order]

    def knows(self, label: int) -> bool:
        """Whether images of the label can be had."""
        try:
            self.sampler.sample(1, label, 0)
        except tf.errors.InvalidArgumentError:
            return False
        return True

    def _of_label(self, label: int, num: int, seed: int) -> np.ndarray:
        parts = []
        for start in range(0, num, _CHUNK):
            # Seeds of chunks must not meet those of another call: 7,919 is beyond any count of chunks here.
            chunk_seed = (seed * 7_919 + start // _CHUNK) % 2**31
            arguments = (_CHUNK, label, chunk_seed) if self.conditional else (_CHUNK, chunk_seed)
            parts.append(np.asarray(self.sampler.sample(*arguments)))
        return np.concatenate(parts)[:num]


def read_release(run: Path) -> Release:
    """The release of a run's folder.

    Raises:
      InvalidInputError: the folder is no run, or its release is incomplete or damaged.
    """
    folder = run / "release"
    check(os.path.isdir(folder), f"{run} is no run: it has no folder release/ (train.py makes runs/<name>/release).")
    statement = folder / "privacy.json"
    check(statement.is_file(), f"{folder} has no privacy.json: a release without its statement is not evaluated.")
    try:
        content = json.loads(statement.read_text(encoding="utf-8"))
        epsilon, end_to_end, delta = content["epsilon"], content["end_to_end"], content["delta"]
        claims = content, content.get("given_encoder") or {}
        stated = [claim.get(name) for claim in claims for name in ("epsilon", "epsilon_rdp", "epsilon_pld")]
        numbers = [delta, *(number for number in stated if number is not None)]
        check_choice(ACCOUNTANTS, accountant=content["accountant"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise InvalidInputError(f"{statement} is damaged ({error}): train again.") from error
    read = all(isinstance(number, (int, float)) and number >= 0 for number in numbers)
    check(read, f"{statement} is damaged: it states numbers below 0 or none at all.")
    check((epsilon is None) or end_to_end, f"{statement} is damaged: it states an epsilon without a guarantee.")
    verify_checksums(folder)
    try:
        sampler = tf.saved_model.load(str(folder / "sampler"))
        conditional = len(sampler.sample.input_signature) == 3
        one = np.asarray(sampler.sample(1, 0, 0) if conditional else sampler.sample(1, 0))
        labels = np.asarray(sampler.sample_labels(_CHUNK, 0))
        sound = one.ndim == 4 and len(one) == 1 and bool(np.all((one >= 0) & (one <= 1)))
        sound &= labels.shape == (_CHUNK,) and labels.dtype.kind in "ui" and int(labels.min()) >= 0
        if conditional:
            sampler.sample(1, int(labels.max()), 0)
    except Exception as error:  # a SavedModel is a program: a damaged one raises whatever it likes
        raise InvalidInputError(
            f"{folder / 'sampler'} is no sampler of ours, or was tampered with: train again."
        ) from error
    check(
        sound,
        f"{folder / 'sampler'} does not sample labels and images in [0, 1], so it was tampered with: train again.",
    )
    return Release(content, sampler, conditional, tuple(one.shape[1:]))  # type: ignore[arg-type]
