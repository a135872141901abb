"""Canary images: made up, put among the records or left out by a coin each, so that one run can be audited.

The images are public, made from a seed: blocks of black and white that no record looks like. The coins come from the
operating system and stay on the run's private side. A canary left out is a null record, so N, q and the claim stay what they
are with all of them there.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from tf_dp2vae.durable import pack, unpack, write_atomically
from tf_dp2vae.evaluation.membership import of_label, reconstruction_losses
from tf_dp2vae.evaluation.real import Labelled
from tf_dp2vae.randomness import SystemEntropy
from tf_dp2vae.records import FULL_SCALE, Records
from tf_dp2vae.validation import check

FILE = "canaries.bin"
_BLOCKS = 7
"""Along the shorter side: coarse enough for a small decoder, and hardly two canaries are alike."""


class ImageCanaries(NamedTuple):
    """Canaries and their coins.

    Attributes:
      images: [m, height, width, channels], uint8.
      labels: [m].
      included: [m], booleans; as private as any record.
    """

    images: np.ndarray
    labels: np.ndarray
    included: np.ndarray

    @classmethod
    def of_run(cls, private: Path, beside: Records, num: int, seed: int) -> ImageCanaries | None:
        """Those that the run has already, where it is resumed; else new ones, as `draw` makes them; None for `num` = 0."""
        if not num:
            return None
        return cls.read(private) if (private / FILE).is_file() else cls.draw(beside, num, seed)

    @classmethod
    def draw(cls, beside: Records, num: int, seed: int) -> ImageCanaries:
        """New canaries of the shape and label set of `beside`, with fresh coins.

        Args:
          beside: the records that they are to be put among; only what is declared of them is used.
          num: m.
          seed: of the images and labels.
        """
        random = np.random.default_rng(seed)
        height, width, channels = beside.image_shape
        size = max(1, min(height, width) // _BLOCKS)
        blocks = random.integers(0, 2, (num, -(-height // size), -(-width // size), channels), dtype=np.uint8)
        images = FULL_SCALE * blocks.repeat(size, 1).repeat(size, 2)[:, :height, :width]
        labels = random.integers(0, max(beside.num_classes, 1), num)
        return cls(images, labels, SystemEntropy().generator().random(num) < 0.5)

    def write(self, private: Path) -> None:
        """Keeps them on a run's private side."""
        write_atomically(private / FILE, pack({}, self._asdict()))

    @classmethod
    def read(cls, private: Path) -> ImageCanaries:
        """The canaries of a run.

        Raises:
          InvalidInputError: the file is damaged.
        """
        file = private / FILE
        arrays = unpack(file)[1]
        check(set(arrays) == set(cls._fields), f"{file} is damaged: it holds no canaries.")
        found = cls(**arrays)
        sound = found.images.ndim == 4 and found.included.dtype == bool
        check(
            sound and found.labels.shape == found.included.shape == found.images.shape[:1],
            f"{file} is damaged: its images, labels and coins do not fit together.",
        )
        return found

    def scores(self, samples: Labelled) -> np.ndarray:
        """How well samples of the release explain each canary, [m], centred without a look at the coins.

        Args:
          samples: images in [0, 1] and labels.
        """
        losses = np.zeros(len(self.images))
        for label in np.unique(self.labels):
            rows = self.labels == label
            near = of_label(samples, label)
            flat = self.images[rows].reshape(int(rows.sum()), -1) / FULL_SCALE
            losses[rows] = reconstruction_losses(flat, near.reshape(len(near), -1))[0]
        return np.median(losses) - losses
