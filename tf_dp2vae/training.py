"""What `DP2VAE.fit` does when nothing is left to refuse: phase after phase, up to a model that may be released.

Each phase asks the run's checkpoints how much of it is done, so a run that was killed comes through the same lines.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import keras
import tensorflow as tf

from tf_dp2vae import planning
from tf_dp2vae.answers import AnsweringMechanisms
from tf_dp2vae.checkpoints import Phase
from tf_dp2vae.chunks import chunk_size
from tf_dp2vae.gradients import full_float32
from tf_dp2vae.mechanisms import Mechanisms
from tf_dp2vae.mixing import unchanged
from tf_dp2vae.planning import Plan
from tf_dp2vae.progress import PhaseProgress
from tf_dp2vae.records import Records
from tf_dp2vae.sampling import PoissonSource
from tf_dp2vae.terms import terms_of
from tf_dp2vae.validation import check

if TYPE_CHECKING:
    from tf_dp2vae.model import DP2VAE


class Training:
    """One call of `fit`, its arguments checked."""

    def __init__(
        self,
        model: DP2VAE,
        records: Records,
        batch_size: int,
        rounds: int,
        steps_per_round: int,
        verbose: str | int,
    ):
        """Args: what is trained; on what; expected batch; rounds of the private phase; steps in each; as in Keras."""
        self._model, self._records, self._batch_size = model, records, batch_size
        self._rounds, self._steps_per_round, self._verbose = rounds, steps_per_round, verbose

    def run(
        self, callbacks: list[keras.callbacks.Callback], validation: tf.data.Dataset | None
    ) -> keras.callbacks.History:
        """Every phase in turn.

        Args:
          callbacks: of the private phase.
          validation: (images, labels) batches for the private phase's metrics.

        Returns:
          The history of the private phase; an empty one where there is none.
        """
        model, records = self._model, self._records
        plan = model.plan = self.begin()
        model.look_at_networks()
        model.num_records, model.unit, model.audit_canaries = records.num_records, records.unit, records.audit_canaries
        show = model.shown = PhaseProgress(model, self._verbose)
        progress = model.checkpoints.progress
        if model.checkpoints.resumed:
            show.phase(f"resumed: {progress.step} steps of {progress.phase.value} are in the checkpoint")
        if progress.phase is Phase.PRETRAINING:
            show.phase(model.pretraining.describe())
            model.phase = Phase.PRETRAINING
            try:
                model.pretraining.run(model, records)
            finally:
                model.phase = Phase.PRIVATE
            if not model.pretraining.is_whole_training:
                model.checkpoints.enter(Phase.PRIVATE)
        history = keras.callbacks.History()
        if not model.pretraining.is_whole_training:
            show.phase(f"private training: {plan.steps} DP-SGD steps, noise multiplier {plan.noise_multiplier:.3f}")
            history = self._take_private_steps(plan, callbacks, validation)
            show.phase(model.prior.describe())
            model.prior.fit(model, records)
        model.latent_prior.temperature.assign(1.0 if model.refinement is None else model.refinement.temperature)
        model.contrast.match(model)
        if model.refinement is not None:
            show.phase(model.refinement.describe())
            model.refinement.run(model, records)
        show.done()
        return history

    def begin(self) -> Plan:
        """The plan of a new run, or that of a killed one, whose networks then stand where its checkpoint left them."""
        model, records = self._model, self._records
        plan = model.checkpoints.begin(
            model.kept_variables,
            model.ledger,
            model.privacy,
            lambda: terms_of(model, records, self._batch_size, self._rounds, self._steps_per_round),
            self._plan,
        )
        check(
            not model.checkpoints.resumed or model.secure_noise,
            f"the run in {model.checkpoints.folder} draws private randomness from an insecure seed, whose sequence would "
            "begin anew and repeat its noise: start it again in a new folder.",
        )
        self._choose_mechanisms()
        return plan

    def _plan(self) -> Plan:
        model, records = self._model, self._records
        return planning.plan(
            model.privacy,
            self._batch_size / records.num_units,
            0 if model.pretraining.is_whole_training else self._steps_per_round * self._rounds,
            model.shares,
            model.ledger.events,
        )

    def _choose_mechanisms(self) -> None:
        """Those that keep answers for a run that may be killed, and plain ones for any other.

        A fit that keeps nothing must not ask those of an earlier one: their answers stand for charges that it has to make.
        """
        model, answers = self._model, self._model.checkpoints.answers
        if answers is not None:
            model.mechanisms = AnsweringMechanisms(model.ledger, model.mechanisms.entropy, answers)
        elif isinstance(model.mechanisms, AnsweringMechanisms):
            model.mechanisms = Mechanisms(model.ledger, model.mechanisms.entropy)

    def _take_private_steps(
        self, plan: Plan, callbacks: list[keras.callbacks.Callback], validation: tf.data.Dataset | None
    ) -> keras.callbacks.History:
        model = self._model
        model.ready_private_steps(plan, self._records)
        untrained = [weight for network in model.private_networks for weight in network.non_trainable_variables]
        with unchanged(untrained) as changed, full_float32():
            # Keras's own loop, of which `train_step` is one turn.
            history = keras.Model.fit(
                model,
                self._batches(plan),
                epochs=self._rounds,
                steps_per_epoch=self._steps_per_round,
                verbose=self._verbose,
                callbacks=[*model.pretraining.callbacks(model, self._rounds), *callbacks],
                validation_data=validation,
                shuffle=False,
            )
        check(not changed, f"records changed weights without noise: {', '.join(changed)}. They were put back.")
        return history

    def _batches(self, plan: Plan) -> tf.data.Dataset:
        """Poisson batches with what their steps need drawn, on another thread, for which entropy has a stream of its own."""
        model = self._model
        size = model.physical_batch_size or chunk_size(
            model.private_networks, self._records.most_held, plan.sampling_rate, model.draws
        )
        num_weights = sum(math.prod(variable.shape) for variable in model.trainable_variables)
        entropy = model.mechanisms.entropy.stream()
        return PoissonSource(
            self._records, plan.sampling_rate, size, entropy, num_weights, model.private_draws
        ).dataset()
