"""Recipes: settings of private training that no one value serves best, chosen by what the images show.

Which family images belong to is said beforehand, by whoever knows what the data set is about; no record is looked at. What
each setting is worth in either family: docs/levers.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from tf_dp2vae.datasets import base_name

FamilyName = Literal["strokes", "surfaces"]
"""Strokes: thin lines on an empty ground, as of digits and letters. Surfaces: anything else, as clothes and photographs."""
ScheduleName = Literal["cosine", "constant"]


@dataclass(frozen=True)
class Recipe:
    """Decoder, steps of the private phase, and what samples are drawn by.

    Attributes:
      blocks: residual blocks of the decoder.
      learning_rate: of Adam at the start.
      schedule: constant, or cosine: the rate falls to 0 along a half cosine.
      steps: private steps in all.
      batch_size: expected size of a Poisson batch, where there are records (or persons) for two.
      temperature: of the latents of samples that are refined (`refinement`).
    """

    blocks: int
    learning_rate: float
    schedule: ScheduleName
    steps: int
    batch_size: int
    temperature: float

    def changed(self, **settings: object) -> Recipe:
        """The recipe with those settings that are not None."""
        return replace(self, **{name: value for name, value in settings.items() if value is not None})


RECIPES: dict[FamilyName, Recipe] = {
    # A half cosine is half of its start on average, so the rates are alike. For a given ε, noise on the mean gradient falls
    # with the batch, ever more slowly: from 1,024 to 4,096, with 150 steps on 60,000 records and the default releases, by
    # 56 % at ε = 10, 12 % at 1 and 1 % at 0.2. Surfaces gain by it at 10, with more steps, half as dear as those of strokes.
    "strokes": Recipe(blocks=1, learning_rate=2e-3, schedule="cosine", steps=150, batch_size=1024, temperature=1.0),
    "surfaces": Recipe(blocks=0, learning_rate=1e-3, schedule="constant", steps=300, batch_size=4096, temperature=1.25),
}
_OF_STROKES = {"mnist", "emnist", "kmnist", "omniglot"}


def batch_size_for(num_units: int, largest: int = RECIPES["surfaces"].batch_size) -> int:
    """The batch where none is asked for: the largest, or half of the records (or persons) where they are too few for two.

    Where no family is known, the largest is that of surfaces, as for any images.
    """
    return max(1, min(largest, num_units // 2))


def family_of(dataset: str) -> FamilyName:
    """The family of a public data set that is known by name, in whatever version and configuration."""
    return "strokes" if base_name(dataset) in _OF_STROKES else "surfaces"
