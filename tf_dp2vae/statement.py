"""The privacy statement: what a run cost, what that means, and for whom, as JSON and in words."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from tf_dp2vae import accounting
from tf_dp2vae.accounting import Event, Privacy
from tf_dp2vae.randomness import GRID
from tf_dp2vae.units import Unit

if TYPE_CHECKING:
    from tf_dp2vae.model import DP2VAE

GIVEN_ENCODER = (
    "Holds only for a hypothetical record that never influenced the encoder; "
    "no guarantee for the records used in pre-training."
)
INSECURE = "The noise was drawn from a seed: whoever knows the seed can subtract it. No guarantee holds."
NOT_PRIVATE = "NOT PRIVATE: made from the records without clip and without noise, for comparison only. Do not publish."
NO_SEARCH = "Not covered: how many other runs were looked at before these hyper-parameters were chosen."
SEARCH_LEDGER = (
    "Every run that the shared ledger held when this was written is composed in epsilon, later ones are not. Choosing among "
    "runs costs what the ledger holds in the end; choosing by private metrics is not covered."
)
SEARCH = (
    "Releasing all trials would cost the stated epsilon, if each charged the same events (noise, batches, steps and "
    "releases); so does choosing one by looking at what they released. Trials of other events are covered by a ledger that "
    "all runs share, not by their number; choosing by private metrics, such as losses on records, by neither."
)
_SECURE = "AES-128 in counter mode, keyed from the operating system, not stored"
_GRID = (
    f"float64, each answer rounded to a grid of at most 1/{round(1 / GRID)} of its noise's deviation, which hides what "
    "floating-point does to a Gaussian's lowest bits"
)
_PACKAGES = ("tensorflow", "keras", "tensorflow-privacy", "dp-accounting", "numpy", "randomgen")


@dataclass(frozen=True)
class Statement:
    """What a run cost.

    Attributes:
      privacy: the target, δ, clip norm and the accountant that calibrated.
      num_records: N.
      audit_canaries: how many of them were made up for an audit.
      events: everything on the ledger, this run's and, where it is shared, that of others before it.
      end_to_end: whether everything released is post-processing of the events' answers.
      private: whether a record is hidden at all; only the baseline without privacy says no.
      secure_noise: whether noise came from the operating system.
      shared_ledger: whether the ledger is kept for all runs on the data set, or holds several.
      pretraining: in a few words.
      public_seed: of public randomness.
      unit: whose data a neighbour differs by.
      trials: how many runs that charged the same events were tried to choose its hyper-parameters; None where nobody said.
    """

    privacy: Privacy
    num_records: int
    events: tuple[Event, ...]
    end_to_end: bool
    private: bool
    secure_noise: bool
    shared_ledger: bool
    pretraining: str
    public_seed: int
    unit: Unit = Unit()
    trials: int | None = None
    audit_canaries: int = 0

    @property
    def holds(self) -> bool:
        """Whether ε speaks about the records of this run at all."""
        return self.private and self.end_to_end and self.secure_noise

    @property
    def repetitions(self) -> int:
        """How many times the events count: as often as there were trials, where a guarantee holds."""
        return self.trials or 1 if self.holds else 1

    def epsilon(self, accountant: accounting.AccountantName | None = None, runs: int | None = None) -> float:
        """ε of the events of so many runs, by an accountant; by default of all trials, by the calibrating one."""
        events = tuple(replace(event, count=event.count * (runs or self.repetitions)) for event in self.events)
        return accounting.epsilon(events, self.privacy.delta, accountant or self.privacy.accountant)

    def to_json(self) -> dict[str, Any]:
        """What `privacy.json` holds: enough to recompute ε with dp-accounting alone. No times and no paths."""
        values = {"epsilon": self.epsilon(), "epsilon_rdp": self.epsilon("rdp"), "epsilon_pld": self.epsilon("pld")}
        entry: dict[str, Any] = {
            "end_to_end": self.holds,
            **(values if self.holds else dict.fromkeys(values)),
            "delta": self.privacy.delta,
            "accountant": self.privacy.accountant,
            "adjacency": self.unit.adjacency,
            **self.unit.to_json(),
            "num_records": self.num_records,
            "audit_canaries": self.audit_canaries,
            "l2_norm_clip": self.privacy.l2_norm_clip,
            "events": [{**event.to_json(), "budget_share": share} for event, share in zip(self.events, self._shares())],
            "trials": self.repetitions,
            "pretraining": self.pretraining,
            "shared_ledger": self.shared_ledger,
            "noise": self._noise(),
            "hyper_parameter_search": self._search(),
            "public_seed": self.public_seed,
            "versions": {package: version(package) for package in _PACKAGES},
        }
        if not self.private:
            entry["not_private"] = NOT_PRIVATE
        elif not self.end_to_end:
            entry["given_encoder"] = {
                **(values if self.secure_noise else dict.fromkeys(values)),
                "means": GIVEN_ENCODER,
            }
        return entry

    def _search(self) -> dict[str, Any]:
        """What choosing hyper-parameters cost, as far as it is known."""
        if self.trials is None or not self.holds:
            return {"covered": False, "means": SEARCH_LEDGER if self.shared_ledger else NO_SEARCH}
        return {
            "covered": "if all trials charged the same events",
            "epsilon_of_one_run": self.epsilon(runs=1),
            "means": SEARCH,
        }

    def _noise(self) -> str:
        if not self.private:
            return "none"
        return f"{_SECURE}; {_GRID}" if self.secure_noise else INSECURE

    def _shares(self) -> list[float]:
        """Each event's fraction of Σ count·q²/σ², rounded: where the budget went, to first order."""
        parts = [event.count * (event.sampling_rate / event.noise_multiplier) ** 2 for event in self.events]
        total = sum(parts) or 1.0
        return [round(part / total, 4) for part in parts]

    def __str__(self) -> str:
        """In words."""
        if not self.private:
            return "\n".join(["# Privacy statement", "", *self._verdict()]) + "\n"
        lines = [
            "# Privacy statement",
            "",
            *self._verdict(),
            "",
            *self._canaries(),
            *self._meaning(),
            "",
            *self._events_table(),
            "",
            *self._not_covered(),
        ]
        return "\n".join(lines) + "\n"

    def _verdict(self) -> list[str]:
        delta, name = self.privacy.delta, self.privacy.accountant.upper()
        both = f"by RDP {self.epsilon('rdp'):.4f}, by PLD {self.epsilon('pld'):.4f}"
        if not self.private:
            return [f"**{NOT_PRIVATE}**"]
        if not self.secure_noise:
            return [f"**NOT PRIVATE. {INSECURE}**"]
        if not self.end_to_end:
            return [
                "**NO END-TO-END GUARANTEE.** The encoder was pre-trained on the records without noise, and every later "
                "step depended on it.",
                "",
                f"Given the encoder, the decoder's training costs ε = {self.epsilon():.4f} at δ = {delta:g} ({both}). "
                f"{GIVEN_ENCODER}",
            ]
        if self.trials is not None:
            return [
                f"**The sampler, and all that SHA256SUMS lists beside it, is ({self.epsilon():.4f}, {delta:g})-"
                f"differentially private** with respect to {self._whom()}, end to end, as one of {self.trials} trials that "
                f"charged the same events, however it was chosen among what they released (calibrated by {name}; {both}). "
                f"For a run that nobody chose, ε is {self.epsilon(runs=1):.4f}."
            ]
        return [
            f"**The sampler, and all that SHA256SUMS lists beside it, is ({self.epsilon():.4f}, {delta:g})-differentially "
            f"private** with respect to {self._whom()}, end to end (calibrated by {name}; {both})."
        ]

    def _canaries(self) -> list[str]:
        if not self.audit_canaries:
            return []
        return [
            f"Of the {self.num_records:,} records {self.audit_canaries:,} are canaries of an audit: made-up images, each "
            "put in or left out (as a null record) by a coin. They are nobody's, and the samples are the worse for them.",
            "",
        ]

    def _meaning(self) -> list[str]:
        if not self.holds:
            return ["Do not publish this as a private release."]
        epsilon = self.epsilon()
        one = "record" if self.unit.column is None else "person"
        ratio = f"{math.exp(epsilon):.2f}" if epsilon < 20 else "an astronomically large number"
        return [
            f"What that means. {self._neighbours()} Whatever is concluded from this release, its probability is at most "
            f"{ratio} (= e^ε) times what it would be without any one {one}, plus δ; and the other way round. Replacing one "
            f"{one} by another is two such changes: at most (2ε, (1 + e^ε)·δ).",
            "",
            f"Pre-training: {self.pretraining}. The ledger "
            + (
                "is a shared one: every run that it held when this was written is counted here; any other on the same "
                "records adds to the cost and is not."
                if self.shared_ledger
                else "is this run's own: other runs on the same records add to the cost and are not counted here."
            ),
            *self._search_in_words(),
        ]

    def _search_in_words(self) -> list[str]:
        if self.trials is None:
            return []
        return [
            "",
            f"Hyper-parameter search: {self.trials} trials, ε = {self.epsilon():.4f} at δ = {self.privacy.delta:g}. "
            + SEARCH,
        ]

    def _whom(self) -> str:
        if self.unit.column is None:
            return f"the {self.num_records:,} records it was made from"
        return f"each of the {self.unit.num_units:,} persons whose {self.num_records:,} records it was made from"

    def _neighbours(self) -> str:
        if self.unit.column is None:
            return (
                "Unit: one record (an image and its label), not one person. Neighbours: one record replaced by a null "
                "record that contributes nothing, N equal."
            )
        return (
            f"Unit: one person, that is all records of one value of {self.unit.column}, of which at most "
            f"{self.unit.max_per_unit} were used. Neighbours: all records of one person replaced by null records that "
            "contribute nothing, the numbers of records and of persons equal."
        )

    def _events_table(self) -> list[str]:
        rows = [
            f"| {e.mechanism} | {e.type} | {e.noise_multiplier:.4f} | {e.sampling_rate:.6g} | {e.count} | {share:.1%} |"
            for e, share in zip(self.events, self._shares())
        ]
        return [
            "What was asked of the records, each answer noised:",
            "",
            "| mechanism | type | noise multiplier σ | sampling rate q | count | share |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            "Share: the event's part of Σ count·q²/σ². `privacy.json` holds the same events to full precision; composing "
            "them with dp-accounting gives ε again (at its own RDP orders, up to 0.2 % more).",
        ]

    def _not_covered(self) -> list[str]:
        return [
            "Not covered: choosing hyper-parameters, or when to stop, by looking at private metrics; "
            + ("several records of one person (the unit is the record); " if self.unit.column is None else "")
            + "what the private folder of the run holds; timing and memory side "
            "channels while training; the rounding of float32 numbers beyond what the noise allows for (docs/guarantee.md)."
        ]

    def dumps(self) -> str:
        """`to_json` as text."""
        return json.dumps(self.to_json(), indent=2) + "\n"


def statement_of(model: DP2VAE) -> Statement:
    """The statement of a trained model.

    Raises:
      ValueError: the model was never trained.
    """
    if model.num_records is None:
        raise ValueError("There is nothing to state yet: train the model first.")
    ledger = model.ledger
    return Statement(
        privacy=model.privacy,
        num_records=model.num_records,
        events=ledger.events,
        end_to_end=model.pretraining.end_to_end,
        private=model.pretraining.private,
        secure_noise=model.secure_noise,
        shared_ledger=ledger.shared or len({charge.run for charge in ledger.charges}) > 1,
        pretraining=model.pretraining.describe(),
        audit_canaries=model.audit_canaries,
        public_seed=model.seed,
        unit=model.unit,
        trials=model.trials,
    )
