"""The flags of `train.py`: a line of help each, checked before anything is read or written.

Where a flag stands for an argument of a class, its default is the class's.
"""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Literal, get_args

from tf_dp2vae.accounting import Privacy
from tf_dp2vae.datasets import base_name
from tf_dp2vae.factors import MOST_AT_ONCE
from tf_dp2vae.gradients import EngineName
from tf_dp2vae.pretraining import Dreams, Unprotected
from tf_dp2vae.priors import GaussianPrior
from tf_dp2vae.recipes import RECIPES, FamilyName, Recipe, ScheduleName, batch_size_for, family_of
from tf_dp2vae.records import Invalid
from tf_dp2vae.refinement import Refinement
from tf_dp2vae.validation import (
    check,
    check_between,
    check_choice,
    check_not_negative,
    check_positive,
    check_seed,
    check_whole,
)
from tf_dp2vae.ways import PretrainName, Way

MOST_CLASSES, LONGEST = 1000, 10_000_000
_WIDEST, _DEEPEST, _MOST_CANARIES = 1024, 32, 65_536
"""Beyond these a typing error is likelier than a wish, and memory or patience would end with a traceback or not at all."""


@dataclass(frozen=True)
class TrainFlags:
    """Training.

    Attributes:
      dataset: mnist (no network needed) or the name of an image data set of tensorflow-datasets; by default mnist.
      data: an .npz with x_train and optionally y_train, x_test, y_test (uint8 or float), instead of --dataset.
      num_classes: size of the declared label set of --data; labels are 0 to this less one.
      unit: an array of --data with one id a record, so that the guarantee is about persons; by default about records.
      max_per_unit: the most records of one person that are used, with --unit; noise and time grow with it.
      invalid_records: what a record of --data or --public-data does that has NaN, pixels outside [0, 1] or a label outside
        the set - refuse (nothing is trained) or null (it counts in N and contributes nothing).
      pretrain: dreams (sound, default), public, none, or unprotected (as published; no end-to-end guarantee); to compare
        with: statistics (end to end, no VAE) and not-private (NO PRIVACY AT ALL).
      prior: latent prior of samples - gaussian (one noisy release) or normal (N(0, I), no release).
      prior_share: part of the budget for the latent prior's release.
      prior_clip: bound on the norm of a record's latent mean, in units of the square root of --latent-dim.
      statistics_share: part of the budget for the counts, means and principal components behind dreams.
      moments_share: part of the budget for each class's covariance on those components.
      refine_share: part of the budget for mean features, which samples are matched to and judged by; 0 for no refinement.
      refine_steps: ordinary steps of the matching, 240 samples each; 0 for none.
      temperature: of the latents of samples that are refined and released; 1 is what the latent prior says, above it samples
        vary more; by default 1 for strokes, 1.25 for surfaces.
      candidates: samples that the released judge chooses one from; 1 for no judge.
      batch_size: expected records in a Poisson batch; expected persons with --unit. By default 1024 for strokes and 4096 for
        surfaces, or half of all where they are fewer than two such batches.
      steps: private steps in all, a multiple of --rounds; by default 150 for strokes, 300 for surfaces.
      rounds: rounds that the private steps are split into; between two of them the encoder sleeps.
      family: what images show - strokes (digits, letters) or surfaces (clothes, photographs); sets --blocks, --steps,
        --batch-size, --learning-rate, --schedule and --temperature where they are not given; by-name is strokes for data
        sets known to be such, as mnist, else surfaces.
      learning_rate: of the private phase's Adam, at its start; by default 2e-3 for strokes, 1e-3 for surfaces.
      schedule: of that rate - cosine (falls to 0 along a half cosine) or constant; by-family is cosine for strokes.
      ema: momentum of the weight average that is released, from 0 (none) to below 1.
      draws: latent draws of each record, averaged before clipping.
      shifts: the largest shift of a record in pixels, another for each of its --draws, averaged before clipping; 0 for none.
      latent_dim: dimensions of z.
      width: channels of the decoder at a quarter of the resolution, and an eighth of the encoder's units.
      blocks: residual blocks of the decoder, two convolutions with group normalisation each; by default 1 for strokes, 0 for
        surfaces.
      pretrain_steps: ordinary steps on dreams or public data, 256 images each.
      pretrain_epochs: passes over the records with --pretrain unprotected or not-private.
      pretrain_learning_rate: of Adam in pre-training and sleep.
      sleep_steps: steps of each sleep, 256 images each; 0 for none.
      public_dataset: a public data set (as for --dataset) for --pretrain public.
      public_data: a public .npz (as for --data) for --pretrain public; images are resized to the records'.
      engine: how clipped gradients are computed - book-keeping (fast) or reference (tensorflow-privacy's own).
      physical_batch_size: records processed at once, at most 1024; memory against speed, no effect on privacy; by default
        chosen from the networks' shapes.
      seed: of public randomness (initial weights, dreams, sleep); private randomness has no seed.
      insecure_seed: for research only - private randomness from this seed too; the run then states no guarantee, and is not
        resumed.
      trials: how many runs that charge the same events (noise, batches, steps, releases) were tried to choose the other
        flags; the statement then tells what releasing all would cost. For other searches there is --ledger.
      audit_canaries: made-up images put among the records or left out by a coin each, for an audit; 0 for none.
      ledger: a file shared by all runs on one data set, so that --epsilon bounds them all together.
      runs: the folder of all runs.
      checkpoint_seconds: seconds between two checkpoints of a run, from which --resume goes on; 0 for one at every step.
      resume: folder of a run that was interrupted, runs/<name>; it goes on with the flags that it was started with.
      name: of this run's folder; by default made of data set, pre-training, epsilon and seed.
    """

    privacy: Privacy = field(default_factory=Privacy)
    dataset: str | None = None
    data: Path | None = None
    num_classes: int = 10
    unit: str | None = None
    max_per_unit: int = 1
    invalid_records: Invalid = "refuse"
    pretrain: PretrainName = "dreams"
    prior: Literal["gaussian", "normal"] = "gaussian"
    prior_share: float = GaussianPrior.share
    prior_clip: float = GaussianPrior.clip
    statistics_share: float = Dreams.statistics_share
    moments_share: float = Dreams.moments_share
    refine_share: float = Refinement.share
    refine_steps: int = Refinement.steps
    temperature: float | None = None
    candidates: int = Refinement.candidates
    batch_size: int | None = None
    steps: int | None = None
    rounds: int = 3
    family: Literal["by-name", FamilyName] = "by-name"
    learning_rate: float | None = None
    schedule: Literal["by-family", ScheduleName] = "by-family"
    ema: float = 0.98
    draws: int = 1
    shifts: int = 0
    latent_dim: int = 24
    width: int = 32
    blocks: int | None = None
    pretrain_steps: int = Dreams.steps
    pretrain_epochs: int = Unprotected.epochs
    pretrain_learning_rate: float = Dreams.learning_rate
    sleep_steps: int = Dreams.sleep_steps
    public_dataset: str | None = None
    public_data: Path | None = None
    engine: EngineName = "book-keeping"
    physical_batch_size: int | None = None
    seed: int = 0
    insecure_seed: int | None = None
    trials: int | None = None
    audit_canaries: int = 0
    ledger: Path | None = None
    checkpoint_seconds: float = 30.0
    resume: Path | None = None
    runs: Path = Path("runs")
    name: str | None = None

    def __post_init__(self) -> None:
        self._check_values()
        self._check_records()
        self._check_together()

    def _check_values(self) -> None:
        """Each flag by itself."""
        check_choice(get_args(PretrainName), pretrain=self.pretrain)
        check_choice(("gaussian", "normal"), prior=self.prior)
        check_choice(get_args(Invalid), invalid_records=self.invalid_records)
        check_choice(get_args(EngineName), engine=self.engine)
        check_choice(("by-name", *get_args(FamilyName)), family=self.family)
        check_choice(("by-family", *get_args(ScheduleName)), schedule=self.schedule)
        recipe = self.recipe
        check_whole(minimum=0, maximum=_DEEPEST, blocks=recipe.blocks)
        check_whole(maximum=MOST_CLASSES, num_classes=self.num_classes)
        check_whole(maximum=_WIDEST, latent_dim=self.latent_dim, width=self.width, draws=self.draws)
        if self.batch_size is not None:
            check_whole(maximum=LONGEST, batch_size=self.batch_size)
        if self.physical_batch_size is not None:
            check_whole(maximum=MOST_AT_ONCE, physical_batch_size=self.physical_batch_size)
        check_whole(
            maximum=LONGEST,
            max_per_unit=self.max_per_unit,
            steps=recipe.steps,
            rounds=self.rounds,
            pretrain_steps=self.pretrain_steps,
            pretrain_epochs=self.pretrain_epochs,
        )
        check_whole(minimum=0, maximum=LONGEST, sleep_steps=self.sleep_steps, refine_steps=self.refine_steps)
        check_whole(minimum=0, maximum=_WIDEST, shifts=self.shifts)
        check_whole(minimum=0, maximum=_MOST_CANARIES, audit_canaries=self.audit_canaries)
        check_whole(maximum=_WIDEST, candidates=self.candidates)
        check_seed(self.seed)
        if self.insecure_seed is not None:
            check_whole(minimum=0, insecure_seed=self.insecure_seed)
        if self.trials is not None:
            check_whole(maximum=LONGEST, trials=self.trials)
        check_between(0, 1, statistics_share=self.statistics_share, moments_share=self.moments_share)
        check_between(0, 1, prior_share=self.prior_share)
        check(0 <= self.refine_share < 1, f"refine_share={self.refine_share!r} must lie in [0, 1): 0 is no refinement.")
        check_positive(prior_clip=self.prior_clip, temperature=recipe.temperature)
        check_positive(learning_rate=recipe.learning_rate, pretrain_learning_rate=self.pretrain_learning_rate)
        check(
            0 <= self.ema < 1, f"ema={self.ema!r} must lie in [0, 1): 0 is no averaging, 0.98 averages some 50 steps."
        )
        check_not_negative(checkpoint_seconds=self.checkpoint_seconds)

    def _check_records(self) -> None:
        """Flags that say what the records are, and which other data are read."""
        default = {one.name: one.default for one in fields(self)}
        if self.data is None:
            names = "unit", "num_classes", *(() if self.public_data else ("invalid_records",))
            of_file = [name for name in names if getattr(self, name) != default[name]]
            named = ", --".join(of_file).replace("_", "-")
            with_file = "--data or --public-data" if of_file == ["invalid_records"] else "--data"
            check(not of_file, f"--{named}: of a file's records, so give {with_file} too.")
        else:
            check(self.dataset is None, f"--dataset {self.dataset} and --data {self.data}: give one of them.")
        check(
            self.unit is not None or self.max_per_unit == 1,
            f"max_per_unit={self.max_per_unit} bounds nothing without --unit, the array that tells persons apart.",
        )
        named = [name for name in ("public_dataset", "public_data") if getattr(self, name) is not None]
        check(len(named) < 2, "--public-dataset and --public-data: give one of them.")
        check(
            bool(named) == (self.pretrain == "public"),
            "--pretrain public and one of --public-dataset and --public-data go together: "
            + ("drop the public data, or say --pretrain public." if named else "name the public data."),
        )
        check(
            not named
            or self._source(self.public_dataset, self.public_data) != self._source(self.named_dataset, self.data),
            f"the public data ({self.public_data or self.public_dataset}) are the records, which would be learned from "
            "without noise: name another data set.",
        )

    def _check_together(self) -> None:
        """Flags that exclude or need each other."""
        self.way.refuse_idle(self._moved())
        recipe = self.recipe
        check(
            self.insecure_seed is None or self.insecure_seed != self.seed,
            f"seed={self.seed} is published and insecure_seed={self.insecure_seed} is the key to the noise: choose another "
            "--insecure-seed.",
        )
        check(
            recipe.steps % self.rounds == 0,
            f"steps={recipe.steps} is no multiple of rounds={self.rounds}: "
            f"try {max(recipe.steps // self.rounds, 1) * self.rounds}.",
        )
        if self.ledger is not None:
            check(
                self.trials is None,
                "--trials and --ledger exclude each other: a shared ledger counts what each trial asked.",
            )
            check(
                self.insecure_seed is None,
                "--insecure-seed would void every statement of a shared ledger: drop --ledger.",
            )
            check(
                self.pretrain not in ("unprotected", "not-private"),
                f"--pretrain {self.pretrain} asks more of the records than a ledger holds, so a shared one would bound "
                "nothing: leave out --ledger.",
            )

    def _moved(self) -> dict[str, object]:
        """The values of all flags that are not at their defaults, those of the guarantee among them."""
        default = {one.name: one.default for one in (*fields(self), *fields(Privacy))}
        flags = {**{name: value for name, value in vars(self).items() if name != "privacy"}, **vars(self.privacy)}
        return {name: value for name, value in flags.items() if value != default[name]}

    @staticmethod
    def _source(dataset: str | None, data: Path | None) -> str:
        """Where data come from; equal for two names of one file, and for all versions and variants of one data set."""
        if data is not None:
            return os.path.realpath(data)
        return f"data set {base_name(dataset or '')}"

    @property
    def named_dataset(self) -> str:
        """The data set that is trained on where no file is given."""
        return self.dataset or "mnist"

    @property
    def recipe(self) -> Recipe:
        """What was asked for, and the family's settings for the rest."""
        named: FamilyName = "surfaces" if self.data else family_of(self.named_dataset)
        recipe = RECIPES[named if self.family == "by-name" else self.family]
        schedule = None if self.schedule == "by-family" else self.schedule
        asked = ("blocks", "learning_rate", "steps", "batch_size", "temperature")
        return recipe.changed(**{name: getattr(self, name) for name in asked}, schedule=schedule)

    @property
    def way(self) -> Way:
        """What tells which of these flags are read."""
        return Way(self.pretrain, has_prior_release=self.prior == "gaussian", is_refined=self.refine_share > 0)

    def resolved(self, num_units: int) -> TrainFlags:
        """These flags with all that a default leaves open and training reads filled in, for so many records (or persons)."""
        recipe = self.recipe
        fitting = batch_size_for(num_units, recipe.batch_size) if self.batch_size is None else self.batch_size
        settings = vars(recipe.changed(batch_size=fitting))
        read = {name: value for name, value in settings.items() if self.way.reads(name)}
        return replace(self, dataset=None if self.data else self.named_dataset, **read)

    def run_name(self, dataset: str) -> str:
        """The run's folder name: the given one, else one that no folder has yet."""
        if self.name is not None:
            return self.name
        spent = "" if self.pretrain == "not-private" else f"-eps{self.privacy.epsilon:g}"
        stem = f"{dataset.replace('/', '-')}-{self.pretrain}{spent}-seed{self.seed}"
        names = itertools.chain([stem], (f"{stem}-{count}" for count in itertools.count(2)))
        return next(name for name in names if not os.path.exists(self.runs / name))
