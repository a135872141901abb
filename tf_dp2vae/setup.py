"""From flags to objects."""

from __future__ import annotations

from tf_dp2vae import datasets
from tf_dp2vae.commands import TrainFlags
from tf_dp2vae.pretraining import Dreams, NoPretraining, Pretraining, Public, Unprotected
from tf_dp2vae.priors import GaussianPrior, NormalPrior, Prior
from tf_dp2vae.records import Records, resized


def make_pretraining(flags: TrainFlags, records: Records) -> Pretraining:
    """The pre-training that the flags ask for; loads the public data where there is any."""
    common = {
        "steps": flags.pretrain_steps,
        "learning_rate": flags.pretrain_learning_rate,
        "sleep_steps": flags.sleep_steps,
    }
    if flags.pretrain == "dreams":
        return Dreams(**common, statistics_share=flags.statistics_share, moments_share=flags.moments_share)
    if flags.pretrain == "public":
        public = datasets.load(flags.public_dataset or "", flags.public_data, max(records.num_classes, 1))
        return Public(**common, data=resized(public.train, records.image_shape))
    if flags.pretrain == "unprotected":
        return Unprotected(flags.pretrain_epochs, flags.pretrain_learning_rate)
    return NoPretraining()


def make_prior(flags: TrainFlags) -> Prior:
    """The latent prior that the flags ask for."""
    return GaussianPrior(flags.prior_share, flags.prior_clip) if flags.prior == "gaussian" else NormalPrior()
