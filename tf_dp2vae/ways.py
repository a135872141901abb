"""The ways of training by their names, `--pretrain`, and which flags each of them reads."""

from __future__ import annotations

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


def reads(way: PretrainName, flag: str) -> bool:
    """Whether the flag, by its field's name, has an effect in that way of training."""
    return way in _READ_BY.get(flag, (way,))


def refuse_idle(way: PretrainName, moved: dict[str, object], has_prior_release: bool, is_refined: bool) -> None:
    """Refuses flags that would change nothing: there is a mistake, in them or in another flag.

    Args:
      way: of training.
      moved: the values of all flags that are not at their defaults.
      has_prior_release: whether the latent prior is released (`--prior gaussian`).
      is_refined: whether samples are refined.
    """

    def shown(flag: str) -> str:
        return f"--{flag.replace('_', '-')} {moved[flag]}"

    listed = ", ".join(f"{shown(flag)} (for {', '.join(_READ_BY[flag])})" for flag in moved if not reads(way, flag))
    check(not listed, f"--pretrain {way} does not read {listed}: leave that out, or choose a --pretrain that does.")
    for flags, counts, way_out in (
        (("prior_share", "prior_clip"), has_prior_release, "--prior gaussian"),
        (("refine_steps", "temperature", "candidates"), is_refined, "a --refine-share above 0"),
    ):
        idle = [] if counts else [shown(flag) for flag in flags if flag in moved]
        check(not idle, f"{', '.join(idle)} counts with {way_out} only: leave that out, or give {way_out}.")
