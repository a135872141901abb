"""The privacy statement: what a run cost, what that means, and for whom, as JSON and in words."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from tf_dp2vae import accounting
from tf_dp2vae.accounting import ADJACENCY, Event, Privacy

if TYPE_CHECKING:
    from tf_dp2vae.model import DP2VAE

GIVEN_ENCODER = (
    "Holds only for a hypothetical record that never influenced the encoder; "
    "no guarantee for the records used in pre-training."
)
INSECURE = "The noise was drawn from a seed: whoever knows the seed can subtract it. No guarantee holds."
NOT_PRIVATE = "NOT PRIVATE: made from the records without clip and without noise, for comparison only. Do not publish."
_PACKAGES = ("tensorflow", "keras", "tensorflow-privacy", "dp-accounting", "numpy")


@dataclass(frozen=True)
class Statement:
    """What a run cost.

    Attributes:
      privacy: the target, δ, clip norm and the accountant that calibrated.
      num_records: N.
      events: everything on the ledger, this run's and, where it is shared, that of others before it.
      end_to_end: whether everything released is post-processing of the events' answers.
      private: whether a record is hidden at all; only the baseline without privacy says no.
      secure_noise: whether noise came from the operating system.
      shared_ledger: whether the ledger was given by path, to be shared by all runs on the data set.
      pretraining: in a few words.
      public_seed: of public randomness.
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

    @property
    def holds(self) -> bool:
        """Whether ε speaks about the records of this run at all."""
        return self.private and self.end_to_end and self.secure_noise

    def epsilon(self, accountant: accounting.AccountantName | None = None) -> float:
        """ε of the events by an accountant; by default the one that calibrated."""
        return accounting.epsilon(self.events, self.privacy.delta, accountant or self.privacy.accountant)

    def to_json(self) -> dict[str, Any]:
        """What `privacy.json` holds: enough to recompute ε with dp-accounting alone. No times and no paths."""
        values = {"epsilon": self.epsilon(), "epsilon_rdp": self.epsilon("rdp"), "epsilon_pld": self.epsilon("pld")}
        entry: dict[str, Any] = {
            "end_to_end": self.end_to_end,
            **(values if self.holds else dict.fromkeys(values)),
            "delta": self.privacy.delta,
            "accountant": self.privacy.accountant,
            "adjacency": ADJACENCY,
            "num_records": self.num_records,
            "l2_norm_clip": self.privacy.l2_norm_clip,
            "events": [{**event.to_json(), "budget_share": share} for event, share in zip(self.events, self._shares())],
            "pretraining": self.pretraining,
            "shared_ledger": self.shared_ledger,
            "noise": self._noise(),
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

    def _noise(self) -> str:
        if not self.private:
            return "none"
        return "keyed from the operating system, not stored" if self.secure_noise else INSECURE

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
        return [
            f"**Everything in this folder is ({self.epsilon():.4f}, {delta:g})-differentially private** with respect to "
            f"the {self.num_records:,} records it was made from, end to end (calibrated by {name}; {both})."
        ]

    def _meaning(self) -> list[str]:
        if not self.holds:
            return ["Do not publish this as a private release."]
        epsilon = self.epsilon()
        ratio = f"{2.718281828459045**epsilon:.2f}" if epsilon < 20 else "an astronomically large number"
        return [
            "What that means. Unit: one record (an image and its label). Neighbours: one record replaced by a null record "
            f"that contributes nothing, N equal. Whatever anyone concludes from this release, the odds of it change by a "
            f"factor of at most {ratio} (= e^ε) through any one record, except with probability δ. Replacing one record by "
            f"another is two such changes: at most (2ε, (1 + e^ε)·δ).",
            "",
            f"Pre-training: {self.pretraining}. The ledger "
            + (
                "was given by path and holds every run that used it on this data set."
                if self.shared_ledger
                else "is this run's own: other runs on the same records add to the cost and are not counted here."
            ),
        ]

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
            "them with dp-accounting gives ε again.",
        ]

    def _not_covered(self) -> list[str]:
        return [
            "Not covered: choosing hyper-parameters, or when to stop, by looking at private metrics; several records of "
            "one person (the unit is the record); what the private folder of the run holds; timing and memory side "
            "channels while training; the finite precision of floating-point noise."
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
    return Statement(
        privacy=model.privacy,
        num_records=model.num_records,
        events=model.ledger.events,
        end_to_end=model.pretraining.end_to_end,
        private=model.pretraining.private,
        secure_noise=model.mechanisms.entropy.secure,
        shared_ledger=model.ledger.shared,
        pretraining=model.pretraining.describe(),
        public_seed=model.seed,
    )
