"""Trains a private generator of images: pre-training, DP-SGD, latent prior, release.

    python train.py --epsilon 1

reads MNIST, and leaves runs/<name>/release (may be published) and runs/<name>/private (must not). What was interrupted

    python train.py --resume runs/<name>

takes up again, without paying twice.
"""

from __future__ import annotations

from dataclasses import asdict

import tf_dp2vae.quiet  # noqa: F401 - before whatever imports TensorFlow

# isort: split
from tf_dp2vae.audit.image_canaries import ImageCanaries
from tf_dp2vae.callbacks import StepHistory
from tf_dp2vae.commands import one_line_errors
from tf_dp2vae.figures import training_curves
from tf_dp2vae.from_flags import (
    load_dataset,
    make_augmentation,
    make_entropy,
    make_networks,
    make_optimizer,
    make_pretraining,
    make_prior,
    make_refinement,
)
from tf_dp2vae.model import DP2VAE
from tf_dp2vae.resuming import parse_training, run_folder


@one_line_errors
def main() -> None:
    flags = parse_training(__doc__)
    dataset = load_dataset(flags)
    records = dataset.train
    flags = flags.resolved(records.num_units)
    pretraining = make_pretraining(flags, records)
    augmentation = make_augmentation(flags, records)
    run = run_folder(flags, dataset.name)
    canaries = ImageCanaries.of_run(run.private, records, flags.audit_canaries, flags.seed)
    records = records.joined(*canaries) if canaries else records

    encoder, decoder = make_networks(flags, records, pretraining)
    with run.opened(records.num_records, flags.ledger, asdict(flags)) as ledger:
        print(f"The run's folder:      {run.path}\nIf it is interrupted:  {run.way_on}", flush=True)
        if canaries:
            canaries.write(run.private)
        model = DP2VAE(
            encoder,
            decoder,
            privacy=flags.privacy,
            pretraining=pretraining,
            prior=make_prior(flags, pretraining),
            refinement=make_refinement(flags, pretraining),
            draws=flags.draws,
            augmentation=augmentation,
            engine=flags.engine,
            physical_batch_size=flags.physical_batch_size,
            seed=flags.seed,
            trials=flags.trials,
            ledger=ledger,
            checkpoints=run.checkpoints,
            entropy=make_entropy(flags),
        )
        model.compile(make_optimizer(flags))
        history = StepHistory()
        model.fit(
            records,
            batch_size=flags.batch_size,
            epochs=flags.rounds,
            steps_per_epoch=flags.recipe.steps // flags.rounds,
            callbacks=[history],
        )
        training_curves(history.values, run.private / "training.png")
        history.write_csv(run.private / "history.csv")
        run.write_private(model)
        run.write_release(model, records)

    statement = model.privacy_statement()
    print(statement)
    print(f"{'May be published' if statement.holds else 'Do NOT publish'}:      {run.release}")
    print(f"Must not be published: {run.private}")


if __name__ == "__main__":
    main()
