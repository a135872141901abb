"""From flags to objects."""

from __future__ import annotations

import keras

from tf_dp2vae import datasets
from tf_dp2vae.augmentation import Shifts
from tf_dp2vae.baselines import NotPrivate, StatisticsAlone, build_linear_decoder
from tf_dp2vae.datasets import Dataset
from tf_dp2vae.flags import TrainFlags
from tf_dp2vae.networks import build_decoder, build_encoder
from tf_dp2vae.optimizers import DPAdam
from tf_dp2vae.pretraining import Dreams, NoPretraining, Pretraining, Public, Unprotected
from tf_dp2vae.priors import GaussianPrior, NormalPrior, Prior
from tf_dp2vae.randomness import Entropy, InsecureSeed, SystemEntropy
from tf_dp2vae.records import Records, resized
from tf_dp2vae.refinement import Refinement


def make_pretraining(flags: TrainFlags, records: Records) -> Pretraining:
    """The pre-training that the flags ask for; loads the public data where there is any."""
    common = {
        "steps": flags.pretrain_steps,
        "learning_rate": flags.pretrain_learning_rate,
        "sleep_steps": flags.sleep_steps,
    }
    if flags.pretrain in ("dreams", "statistics"):
        way = Dreams if flags.pretrain == "dreams" else StatisticsAlone
        return way(**common, statistics_share=flags.statistics_share, moments_share=flags.moments_share)
    if flags.pretrain == "public":
        if flags.public_data is not None:
            classes = records.num_classes or flags.num_classes
            public = datasets.load_npz(flags.public_data, classes, invalid=flags.invalid_records)
        else:
            assert flags.public_dataset is not None
            public = datasets.load(flags.public_dataset)
        return Public(**common, data=resized(public.train, records.image_shape))
    if flags.pretrain == "unprotected":
        return Unprotected(flags.pretrain_epochs, flags.pretrain_learning_rate)
    if flags.pretrain == "not-private":
        return NotPrivate(flags.pretrain_epochs, flags.pretrain_learning_rate)
    return NoPretraining()


def load_dataset(flags: TrainFlags) -> Dataset:
    """The data set that the flags name."""
    if flags.data is None:
        return datasets.load(flags.named_dataset)
    return datasets.load_npz(
        flags.data,
        flags.num_classes,
        unit=flags.unit,
        max_per_unit=flags.max_per_unit,
        seed=flags.seed,
        invalid=flags.invalid_records,
    )


def make_augmentation(flags: TrainFlags, records: Records) -> Shifts | None:
    """The shifts that the flags ask for; refused where an image is too small for them."""
    if not flags.shifts:
        return None
    shifts = Shifts(flags.shifts)
    shifts.check_fits(records.image_shape)
    return shifts


def make_prior(flags: TrainFlags, pretraining: Pretraining) -> Prior:
    """The latent prior that the flags ask for; a way that is the whole training sets its own."""
    if flags.prior == "normal" or pretraining.is_whole_training:
        return NormalPrior()
    return GaussianPrior(flags.prior_share, flags.prior_clip)


def make_refinement(flags: TrainFlags, pretraining: Pretraining) -> Refinement | None:
    """What follows training; nothing where no decoder is trained, or no share is left for it."""
    if not flags.refine_share or not pretraining.is_refined:
        return None
    return Refinement(
        share=flags.refine_share,
        steps=flags.refine_steps,
        temperature=flags.recipe.temperature,
        candidates=flags.candidates,
    )


def make_networks(flags: TrainFlags, records: Records, pretraining: Pretraining) -> tuple[keras.Model, keras.Model]:
    """Encoder and decoder for what the records are declared to be."""
    shape, classes = records.image_shape, records.num_classes
    if isinstance(pretraining, StatisticsAlone):
        # No encoder is trained or asked; the model's one stays what it is.
        latent = pretraining.components
        return build_encoder(shape, latent, classes, 1, flags.seed), build_linear_decoder(shape, latent, classes)
    encoder = build_encoder(shape, flags.latent_dim, classes, flags.width, flags.seed)
    return encoder, build_decoder(shape, flags.latent_dim, classes, flags.width, flags.seed + 1, flags.recipe.blocks)


def make_optimizer(flags: TrainFlags) -> DPAdam:
    """The private phase's Adam."""
    rate = flags.recipe.learning_rate
    if flags.recipe.schedule == "cosine":
        rate = keras.optimizers.schedules.CosineDecay(rate, flags.recipe.steps)
    return DPAdam(learning_rate=rate, use_ema=flags.ema > 0, ema_momentum=flags.ema)


def make_entropy(flags: TrainFlags) -> Entropy:
    """The operating system, unless a seed was asked for by its name."""
    return SystemEntropy() if flags.insecure_seed is None else InsecureSeed(flags.insecure_seed)
