"""The ways of training by their names, `--pretrain`, and which flags each of them reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tf_dp2vae.validation import check

PretrainName = Literal["dreams", "public", "none", "unprotected", "statistics", "not-private"]
_WITH_PRIVATE_PHASE: tuple[PretrainName, ...] = ("dreams", "public", "none", "unprotected")
_READ_BY: dict[str, tuple[PretrainName, ...]] = {
    **dict.fromkeys(("pretrain_steps", "sleep_steps"), ("dreams", "public")),
    "pretrain_epochs": ("unprotected", "not-private"),
    "pretrain_learning_rate": ("dreams", "public", "unprotected", "not-private"),
    **dict.fromkeys(("statistics_share", "moments_share"), ("dreams", "statistics")),
    **dict.fromkeys(("prior", "prior_share", "prior_clip", "batch_size", "steps", "rounds"), _WITH_PRIVATE_PHASE),
    **dict.fromkeys(("learning_rate", "schedule", "ema", "draws", "shifts", "engine"), _WITH_PRIVATE_PHASE),
    **dict.fromkeys(("physical_batch_size", "l2_norm_clip"), _WITH_PRIVATE_PHASE),
    **dict.fromkeys(
        ("refine_share", "refine_steps", "temperature", "candidates"), (*_WITH_PRIVATE_PHASE, "not-private")
    ),
    **dict.fromkeys(("family", "latent_dim", "width", "blocks"), (*_WITH_PRIVATE_PHASE, "not-private")),
    **dict.fromkeys(("epsilon", "delta", "accountant"), (*_WITH_PRIVATE_PHASE, "statistics")),
    "trials": ("dreams", "public", "none", "statistics"),
}
"""The ways in which a flag has an effect; those that are not named here have one in all."""
_OF_PRIOR, _OF_REFINEMENT = ("prior_share", "prior_clip"), ("refine_steps", "temperature", "candidates")


@dataclass(frozen=True)
class Way:
    """What is trained and released, as far as flags depend on it.

    Attributes:
      pretrain: the way of training.
      has_prior_release: whether the latent prior is released (`--prior gaussian`).
      is_refined: whether samples are refined.
    """

    pretrain: PretrainName
    has_prior_release: bool
    is_refined: bool

    def reads(self, flag: str) -> bool:
        """Whether the flag, by its field's name, has an effect."""
        idle = (*(() if self.has_prior_release else _OF_PRIOR), *(() if self.is_refined else _OF_REFINEMENT))
        return self._trains_by(flag) and flag not in idle

    def refuse_idle(self, moved: dict[str, object]) -> None:
        """Refuses flags that would change nothing: there is a mistake, in them or in another flag.

        Args:
          moved: the values of all flags that are not at their defaults.
        """

        def shown(flag: str) -> str:
            return f"--{flag.replace('_', '-')} {moved[flag]}"

        elsewhere = [flag for flag in moved if not self._trains_by(flag)]
        listed = ", ".join(f"{shown(flag)} (for {', '.join(_READ_BY[flag])})" for flag in elsewhere)
        check(
            not listed,
            f"--pretrain {self.pretrain} does not read {listed}: leave that out, or choose a --pretrain that does.",
        )
        for flags, way_out in ((_OF_PRIOR, "--prior gaussian"), (_OF_REFINEMENT, "a --refine-share above 0")):
            idle = [shown(flag) for flag in flags if flag in moved and not self.reads(flag)]
            check(not idle, f"{', '.join(idle)} counts with {way_out} only: leave that out, or give {way_out}.")

    def _trains_by(self, flag: str) -> bool:
        return self.pretrain in _READ_BY.get(flag, (self.pretrain,))
