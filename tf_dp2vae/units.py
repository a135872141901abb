"""The unit of privacy: whose data one neighbour differs by.

By default the unit is one record, and a person with forty records is forty units. With a column of ids the unit is all
records of one id, *one person*: at most k records of each are kept, and every mechanism treats them as one contribution.

| | one record | one person, at most k records |
|---|---|---|
| neighbours | one record is nulled | all records of one person are nulled |
| N in q = batch/N and in δ < 1/N | records | persons |
| a Poisson batch | each record with probability q | each *person* with probability q, then all their kept records |
| sensitivity of a sum of contributions of norm ≤ C | C | k·C, by the triangle inequality |
| event | (Poisson-sampled) Gaussian(q, σ) | the same: σ is the noise's deviation divided by k·C |

In a batch a person has k places, whatever they have records, so steps cost as much as if everybody had k.

One coin a person makes the analysis exact: with a person's records nulled the sum changes with probability q, and then by
at most k·C, which is the Poisson-sampled Gaussian itself, with no group-privacy argument. Which records are kept is drawn
from public randomness over *positions*, so it depends neither on contents nor on other persons' records.

Reference: Levy et al. 2021, "Learning with User-Level Privacy" (bounding contributions); McMahan et al. 2018.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from tf_dp2vae.accounting import ADJACENCY
from tf_dp2vae.configuration import Configuration
from tf_dp2vae.validation import check, check_whole

if TYPE_CHECKING:
    from tf_dp2vae.records import Records


@keras.saving.register_keras_serializable("tf_dp2vae")
@dataclass(frozen=True)
class Unit(Configuration):
    """What a guarantee is about.

    Attributes:
      column: name of the ids that tell persons apart; None where the unit is one record.
      max_per_unit: k, the most records of one person that are kept.
      num_units: how many persons there are, public by declaration; None where the unit is one record.
    """

    column: str | None = None
    max_per_unit: int = 1
    num_units: int | None = None

    @property
    def adjacency(self) -> str:
        """The neighbours, in words."""
        if self.column is None:
            return ADJACENCY
        return (
            f"add-or-remove of one unit (all records of one value of {self.column} replaced by null records, the numbers "
            "of records and of units equal)"
        )

    @property
    def in_full(self) -> str:
        """The neighbours and the numbers that noise is sized by; what is charged for one unit says nothing of another."""
        numbers = f"; at most {self.max_per_unit} records of each of {self.num_units}"
        return self.adjacency if self.column is None else self.adjacency + numbers

    @property
    def plural(self) -> str:
        """How messages count units."""
        return "records" if self.column is None else f"values of {self.column}"

    def to_json(self) -> dict[str, Any]:
        """What the statement says of it."""
        if self.column is None:
            return {"unit": "one record, not one person"}
        return {
            "unit": f"one person: all records of one value of {self.column}",
            "unit_column": self.column,
            "max_records_per_unit": self.max_per_unit,
            "num_units": self.num_units,
        }


def bound_per_unit(records: Records, ids: Any, column: str, max_per_unit: int, seed: int = 0) -> Records:
    """The records, at most k of each person, so that a guarantee about them is about persons.

    Args:
      records: all of them.
      ids: [N], whole numbers or text; equal ids are one person.
      column: what the ids are called in the statement.
      max_per_unit: k.
      seed: of public randomness; chooses which k records of a person are kept.

    Raises:
      InvalidInputError: ids that do not fit the records.
    """
    ids = np.asarray(ids)
    check_whole(max_per_unit=max_per_unit)
    check_whole(minimum=0, seed=seed)
    check(
        ids.ndim == 1 and len(ids) == records.num_records,
        f"{column} has shape {ids.shape} for {records.num_records} records: one id a record is needed.",
    )
    check(ids.dtype.kind in "iuUS", f"{column} has dtype {ids.dtype}: ids are whole numbers or text.")
    names, unit_of = np.unique(ids, return_inverse=True)
    kept = _kept(unit_of, max_per_unit, seed)
    return records.of_units(kept, unit_of[kept], Unit(column, max_per_unit, len(names)))


def _kept(unit_of: np.ndarray, max_per_unit: int, seed: int) -> np.ndarray:
    """Positions of at most k records a unit, ascending: the first k of each in one public order of all positions."""
    order = np.random.default_rng(seed).permutation(len(unit_of))
    by_unit = order[np.argsort(unit_of[order], kind="stable")]
    sizes = np.bincount(unit_of)
    rank = np.arange(len(unit_of)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.sort(by_unit[rank < max_per_unit])
