"""DP2VAE: a Keras model whose `fit` pre-trains, then trains privately, and knows what it cost.

    model = DP2VAE(encoder, decoder, privacy=Privacy(epsilon=1.0, delta=1e-5))
    model.compile(optimizer="dp-adam")
    model.fit(x_train, y_train, epochs=10)
    model.export_sampler("sampler")

Reference: Jiang, Zhang, Karami, Chen, Shao, Yu 2022, "DP²-VAE: Differentially Private Pre-trained Variational
Autoencoders". What differs from the paper: see `pretraining`, which also has the paper's own way, by its name.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any, Literal, get_args

import keras
import tensorflow as tf

from tf_dp2vae import accounting, reproducible, saved
from tf_dp2vae.accounting import Privacy
from tf_dp2vae.augmentation import Shifts
from tf_dp2vae.callbacks import StepsDone
from tf_dp2vae.checkpoints import Checkpoints, Phase
from tf_dp2vae.contrast import Contrast
from tf_dp2vae.factors import MOST_AT_ONCE
from tf_dp2vae.gradients import EngineName, make_engine
from tf_dp2vae.judge import Judge
from tf_dp2vae.ledger import Ledger
from tf_dp2vae.mechanisms import Mechanisms
from tf_dp2vae.mixing import refuse_mixing, refuse_mixing_once_trained
from tf_dp2vae.optimizers import NoisedSum, get_dp_optimizer
from tf_dp2vae.planning import Plan
from tf_dp2vae.pretraining import Dreams, Pretraining
from tf_dp2vae.priors import GaussianPrior, LatentPrior, NormalPrior, Prior
from tf_dp2vae.private_steps import ANSWER, PrivateSteps
from tf_dp2vae.progress import EpsilonSpent, PhaseProgress
from tf_dp2vae.randomness import Entropy, SystemEntropy
from tf_dp2vae.recipes import batch_size_for
from tf_dp2vae.records import Records
from tf_dp2vae.refinement import Refinement
from tf_dp2vae.refusals import (
    as_records,
    check_kinds,
    check_networks,
    check_parts,
    check_ready,
    check_sizes,
    listed,
    refuse_private_control,
    refuse_unsupported,
    warn_about_delta,
)
from tf_dp2vae.sampler import Sampler
from tf_dp2vae.sampling import PoissonBatch, unit_interval
from tf_dp2vae.statement import Statement, statement_of
from tf_dp2vae.training import Training
from tf_dp2vae.units import Unit
from tf_dp2vae.vae import VAE
from tf_dp2vae.validation import InvalidInputError, check, check_choice, check_whole


@keras.saving.register_keras_serializable("tf_dp2vae")
class DP2VAE(VAE):
    """A conditional variational autoencoder whose decoder may be released.

    Attributes, beside those of `VAE`:
      latent_prior: where samples' latents come from, and how often each class occurs.
      contrast: how samples' logits become pixels.
      judge: which of several samples is shown for a label.
      ledger: everything that was charged; a model that was saved with a ledger in a file holds a copy, and trains on only
        after `model.ledger = Ledger(path)`.
      secure_noise: whether all noise so far came from the operating system.
      plan: the constants of the last `fit`, or None.
      shown: what the last `fit` shows of its progress.
      num_records, unit, audit_canaries: of the records it was trained on (N; what the guarantee is about; how many of them
        were made up for an audit).
    """

    def __init__(
        self,
        encoder: keras.Model,
        decoder: keras.Model,
        *,
        privacy: Privacy | None = None,
        pretraining: Pretraining | None = None,
        prior: Prior | None = None,
        refinement: Refinement | Literal["default"] | None = "default",
        draws: int = 1,
        augmentation: Shifts | None = None,
        engine: EngineName = "book-keeping",
        physical_batch_size: int | None = None,
        seed: int = 0,
        trials: int | None = None,
        ledger: Ledger | None = None,
        checkpoints: Checkpoints | None = None,
        entropy: Entropy | None = None,
        **kwargs: Any,
    ):
        """Creates the model; nothing is read or trained yet.

        Args:
          encoder: [image] or [image, one-hot label] → [mean, log-variance], each [examples, latent].
          decoder: [latent] or [latent, one-hot label] → logits [examples, height, width, channels].
          privacy: the guarantee to train for; by default `Privacy()`, ε = 1 at δ = 1e-5.
          pretraining: what happens before the private phase, and which networks that phase trains; by default `Dreams()`.
          prior: how the latent prior is made after training; by default `GaussianPrior()`, where pre-training makes none.
          refinement: what follows training; by default `Refinement()`, where a decoder is trained. None: nothing follows.
          draws: K latent draws of each example, averaged before clipping.
          augmentation: moves records in the private phase, a copy for each draw; averaged before clipping too. None: off.
          engine: how clipped gradient sums are computed, `book-keeping` or `reference`.
          physical_batch_size: examples processed at once, at most 1,024; memory against speed, never privacy. None: from
            shapes (`chunks`).
          seed: of public randomness (pre-training, sleep). Private randomness has no seed.
          trials: how many runs that charge the same events were tried to choose the arguments; for the statement.
          ledger: what the training is charged to; by default one in memory of the model's own.
          checkpoints: where a run is kept that may be killed and resumed, with a ledger in a file; by default nowhere.
          entropy: source of private randomness; by default the operating system. `InsecureSeed` is for research.

        Raises:
          InvalidInputError: networks that mix examples (all offending layers are named), or whose shapes do not fit; an
            engine that is not known; a prior or a refinement that the pre-training leaves no room for.
        """
        check_kinds(
            privacy=privacy,
            pretraining=pretraining,
            prior=prior,
            refinement=None if refinement == "default" else refinement,
            augmentation=augmentation,
            ledger=ledger,
            checkpoints=checkpoints,
        )
        super().__init__(encoder, decoder, draws, augmentation, seed, **kwargs)
        check_choice(get_args(EngineName), engine=engine)
        check_whole(maximum=MOST_AT_ONCE, physical_batch_size=1 if physical_batch_size is None else physical_batch_size)
        refuse_mixing([encoder, decoder])
        self.num_records: int | None = None
        self.privacy = privacy or Privacy()
        self._looked_at = self._trained_layers()
        self.pretraining = pretraining or Dreams()
        self.prior = prior or (NormalPrior() if self.pretraining.is_whole_training else GaussianPrior())
        if refinement == "default":
            refinement = Refinement() if self.pretraining.is_refined else None
        check_parts(self.pretraining, self.prior, refinement, self.num_classes)
        self.refinement = refinement
        self.engine, self.physical_batch_size, self.seed = engine, physical_batch_size, seed
        if trials is not None:
            check_whole(trials=trials)
        self.trials = trials
        classes, always = max(self.num_classes, 1), "float32"  # whatever Keras's policy says by now
        self.latent_prior = LatentPrior(self.latent_dim, classes, name="latent_prior", dtype=always)
        self.contrast = Contrast(name="contrast", dtype=always)
        self.judge = Judge(self.image_shape, classes, name="judge", dtype=always)
        entropy = entropy or SystemEntropy()
        self.secure_noise = entropy.secure
        self.mechanisms = Mechanisms(Ledger(), entropy)
        if ledger is not None:
            self.ledger = ledger
        self.checkpoints = checkpoints or Checkpoints()
        self.plan: Plan | None = None
        self.unit, self.audit_canaries = Unit(), 0
        self.phase, self.shown = Phase.PRIVATE, PhaseProgress(self, verbose=0)
        self._epsilon = EpsilonSpent()
        self.built = True

    @property
    def pretraining(self) -> Pretraining:
        """What happens before the private phase; the statement is about it, so it stays once the model was trained."""
        return self._pretraining

    @pretraining.setter
    def pretraining(self, pretraining: Pretraining) -> None:
        check(
            self.num_records is None,
            "the model was trained already, and its statement says after which pre-training: build a new model.",
        )
        self._pretraining = pretraining

    @property
    def ledger(self) -> Ledger:
        """What the mechanisms charge."""
        return self.mechanisms.ledger

    @ledger.setter
    def ledger(self, ledger: Ledger) -> None:
        missing = accounting.lacking(self.ledger.events, ledger.events)
        check(
            self.num_records is None or not missing,
            f"the ledger does not hold what this model has asked of the records ({', '.join(missing)}), so its statement "
            "would leave that out: open the ledger that was charged.",
        )
        ledger.vouch(self._guaranteed)
        self.mechanisms.ledger = ledger

    @property
    def _guaranteed(self) -> bool:
        return self.secure_noise and self.pretraining.end_to_end and self.pretraining.private

    @property
    def shares(self) -> dict[str, float]:
        """The share of the budget that each one-time release takes."""
        refinement = {} if self.refinement is None or not self.pretraining.private else self.refinement.shares
        return {**self.pretraining.shares, **self.prior.shares, **refinement}

    # --- One step ---------------------------------------------------------------------------------------------------

    @property
    def private_networks(self) -> list[keras.Model]:
        """The networks that the private phase trains."""
        return [self.decoder] if self.pretraining.freezes_encoder else [self.encoder, self.decoder]

    @property
    def trainable_variables(self) -> list[keras.Variable]:
        """Of the networks that the current phase trains; each once, also where a layer is part of both."""
        networks = self.private_networks if self.phase is Phase.PRIVATE else [self.encoder, self.decoder]
        variables = [variable for network in networks for variable in network.trainable_variables]
        return list({id(variable): variable for variable in variables}.values())

    trainable_weights = trainable_variables

    @property
    def non_trainable_variables(self) -> list[keras.Variable]:
        """All others, so that `summary()` counts each once."""
        return self._others(self.variables)

    @property
    def non_trainable_weights(self) -> list[keras.Variable]:
        """The same without the state of random draws, which Keras calls no weight."""
        return self._others(self.weights)

    def _others(self, variables: Sequence[keras.Variable]) -> list[keras.Variable]:
        trained = {id(variable) for variable in self.trainable_variables}
        return [variable for variable in variables if id(variable) not in trained]

    def train_step(self, data: Any) -> dict[str, Any]:
        """One step of the phase that the model is in; here is the switch."""
        if self.phase is Phase.PRETRAINING:
            return self._ordinary_step(*data)
        return self._private_step(data)

    def _ordinary_step(self, images: tf.Tensor, labels: tf.Tensor) -> dict[str, Any]:
        """Ordinary gradients: on dreams, on public data, or (unprotected) on records."""
        with tf.GradientTape() as tape:
            loss = self.mean_elbo(unit_interval(images), labels, self._noise)
        variables = self.trainable_variables
        self.optimizer.apply(tape.gradient(loss, variables), variables)
        return self._logs()

    def _private_step(self, batch: PoissonBatch) -> dict[str, Any]:
        """DP-SGD: clipped sum and noise by the mechanism, expected batch and update by the DP optimizer."""
        private_loss, answer = [], {}

        def noised_sum(
            variables: Sequence[keras.Variable], l2_norm_clip: float, noise_multiplier: float
        ) -> list[tf.Tensor]:
            sums, loss = self.mechanisms.gradient_sum(
                self._engine, self, batch, variables, l2_norm_clip, noise_multiplier
            )
            private_loss.append(loss)
            answer.update({str(index): noised for index, noised in enumerate(sums)})
            return sums

        self.update(noised_sum)
        self._loss.update_state(private_loss[0])
        return {**self._logs(), self._loss.name: private_loss[0], ANSWER: answer}

    def update(self, noised_sum: NoisedSum) -> None:
        """The DP optimizer's update of the private networks from a noised sum, new or stored."""
        variables = self.trainable_variables
        gradients = self.optimizer.private_gradients(noised_sum, variables)
        self.optimizer.apply(gradients, variables)

    def _logs(self) -> dict[str, Any]:
        return {self._loss.name: self._loss.result(), self._epsilon.name: self._epsilon.result()}

    def count_step(self) -> None:
        """One more private step is charged: what the progress bar shows as spent."""
        self._epsilon.advance()

    def step_logs(self, loss: float) -> dict[str, Any]:
        """The logs of a step that is not computed anew; NaN for one that was charged and never answered."""
        if not math.isnan(loss):
            self._loss.update_state(loss)
        return {**self._logs(), self._loss.name: loss}

    @property
    def metrics(self) -> list[keras.Metric]:
        """The trackers that Keras resets at each epoch."""
        return [self._loss, self._reconstruction, self._kl, self._epsilon]

    def get_metrics_result(self) -> dict[str, Any]:
        """What an epoch's end reports."""
        return {name: float(value) for name, value in self._logs().items()}

    # --- Training ---------------------------------------------------------------------------------------------------

    def compile(
        self, optimizer: Any = "dp-adam", *, run_eagerly: bool = False, jit_compile: bool | str = "auto"
    ) -> None:  # type: ignore[override]
        """Configures the private phase.

        Args:
          optimizer: `"dp-adam"`, `"dp-sgd"`, a `DPAdam` or a `DPSGD`.
          run_eagerly: step by step in Python, for looking inside.
          jit_compile: XLA for the private step. "auto" turns it on where there is a GPU; on a CPU TensorFlow's own kernels
            were faster in every network measured (`python benchmarks/speed.py` prints both).

        Raises:
          InvalidInputError: the optimizer adds no noise.
        """
        if jit_compile == "auto":
            jit_compile = not run_eagerly and bool(tf.config.list_logical_devices("GPU"))
        super().compile(
            optimizer=get_dp_optimizer(optimizer),
            run_eagerly=run_eagerly,
            jit_compile=jit_compile,
            auto_scale_loss=False,  # losses are scaled for half precision, in which no network here computes
        )

    def fit(  # type: ignore[override]
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: str | int = "auto",
        callbacks: keras.callbacks.Callback | list[keras.callbacks.Callback] | None = None,
        validation_data: tuple[Any, ...] | Records | None = None,
        steps_per_epoch: int | None = None,
        **unsupported: Any,
    ) -> keras.callbacks.History:
        """Pre-trains, trains privately, fits the latent prior, and refines, for `privacy.epsilon` in all.

        Args:
          x: [N, height, width(, channels)] arrays, uint8 or float in [0, 1]; or `Records`.
          y: [N] whole numbers in 0 … num_classes − 1, for a model with labels.
          batch_size: *expected* size of a Poisson batch, q·N, in records, or in persons where those are the unit; by default
            4,096, or half of all where they are fewer than 8,192.
          epochs: rounds of the private phase; sleep, where there is any, follows each but the last.
          verbose: as in Keras.
          callbacks: of the private phase. Those that stop, save or change rates by private metrics are refused.
          validation_data: (x, y) or `Records`, other records; their metrics are private numbers too, and cost nothing only
            if nothing is decided by them.
          steps_per_epoch: private steps in each round; by default 1/q, which is one expected pass.

        Returns:
          The history of the private phase. Its losses are private numbers.

        Raises:
          InvalidInputError: unusable data or arguments; raised before anything is charged.
          BudgetExceededError: the ledger has no room left.
        """
        refuse_unsupported(unsupported)
        callbacks = listed(callbacks)
        refuse_private_control(callbacks)
        check_ready(self)
        self._engine = make_engine(self.engine, self.private_networks)
        records = as_records(x, y, self.num_classes, self.image_shape)
        self.pretraining.check_records(records)
        batch_size = batch_size_for(records.num_units) if batch_size is None else batch_size
        check_sizes(records, batch_size, epochs)
        if steps_per_epoch is None:
            steps_per_epoch = max(1, round(records.num_units / batch_size))
        check_whole(steps_per_epoch=steps_per_epoch)
        validation = self._validation_batches(validation_data)
        warn_about_delta(self.privacy.delta, records)
        self.secure_noise = self.secure_noise and self.mechanisms.entropy.secure
        self.ledger.vouch(self._guaranteed)
        self.ledger.bind(records.num_records, records.unit.in_full)
        return Training(self, records, batch_size, epochs, steps_per_epoch, verbose).run(callbacks, validation)

    def pretrain(self, dataset: tf.data.Dataset, steps: int, learning_rate: float) -> None:
        """Ordinary training of encoder and decoder on (images, labels) that cost nothing; for `Pretraining.run`.

        Raises:
          InvalidInputError: it is called by anybody else, so that no pre-training answers for what was trained on.
        """
        check(
            self.phase is Phase.PRETRAINING,
            "pretrain adds no noise and is for Pretraining.run, which fit calls: pass pretraining=Public(data=…) for public "
            "data, Unprotected() for the published way.",
        )
        private, done = (self.optimizer, self.jit_compile), self.checkpoints.progress.step
        falling = keras.optimizers.schedules.CosineDecay(learning_rate, steps, alpha=0.05)
        # Ordinary convolutions run faster as TensorFlow's own kernels than as XLA's on a CPU.
        self.optimizer, self.jit_compile = keras.optimizers.Adam(falling), False
        self.optimizer.build(self.trainable_variables)
        self.checkpoints.track("optimizer of pre-training", self.optimizer.variables)
        try:
            self.make_train_function(force=True)
            if done < steps:
                rest = dataset.repeat().skip(done)
                super().fit(
                    rest,
                    epochs=1,
                    steps_per_epoch=steps - done,
                    verbose=0,  # Keras's own bar would write each step into a log, and know of no ε
                    shuffle=False,
                    callbacks=[StepsDone(self.checkpoints, self.shown.bar(steps - done))],
                )
        finally:
            self.optimizer, self.jit_compile = private
            self.train_function = None

    def look_at_networks(self) -> None:
        """Once more, where layers were exchanged, frozen or thawed since they passed.

        Raises:
          InvalidInputError: as they are now, the networks do not keep examples apart.
        """
        if self._trained_layers() != self._looked_at:
            check_networks(self.encoder, self.decoder)
            refuse_mixing([self.encoder, self.decoder])
            self._looked_at = self._trained_layers()

    def ready_private_steps(self, plan: Plan, records: Records) -> None:
        """Readies optimizer and progress bar for the plan's private steps on the records."""
        self.look_at_networks()
        refuse_mixing_once_trained([self.encoder, self.decoder])
        self.optimizer.configure(
            self.privacy.l2_norm_clip,
            plan.noise_multiplier * records.unit.max_per_unit,
            plan.sampling_rate * records.num_units,
        )
        self.optimizer.build(self.trainable_variables)
        self.checkpoints.track("optimizer", self.optimizer.variables)
        self._epsilon.follow(self.checkpoints.events_beside_steps(), plan, self.privacy)
        self.make_train_function(force=True)

    def _trained_layers(self) -> list[tuple[keras.Layer, bool]]:
        """Which layers are trained, on which it may hang what they do: a frozen BatchNormalization mixes nothing."""
        networks = self.encoder, self.decoder
        return [(layer, layer.trainable) for network in networks for layer in network._flatten_layers()]

    def make_train_function(self, force: bool = False) -> Any:
        """Keras's, charging each private step before it runs: `train_step` itself runs in Python only when traced."""
        if self.train_function is not None and not force:
            return self.train_function
        super().make_train_function(force=True)
        if self.phase is Phase.PRIVATE:
            self.train_function = PrivateSteps(self, self.train_function)
        return self.train_function

    def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: a batch chosen by the caller is no Poisson batch, so no event describes it."""
        raise InvalidInputError("train_on_batch is refused: a batch of your choice is no Poisson sample; use fit.")

    def _validation_batches(self, data: tuple[Any, ...] | Records | None) -> tf.data.Dataset | None:
        if data is None:
            return None
        check(
            isinstance(data, Records) or isinstance(data, (tuple, list)) and len(data) in (1, 2),
            "validation_data must be (x, y), (x,) where there are no labels, or Records.",
        )
        images, labels = (data, None) if isinstance(data, Records) else (*data, None)[:2]
        records = as_records(images, labels, self.num_classes, self.image_shape)
        return self.in_order(records)

    # --- What comes out ---------------------------------------------------------------------------------------------

    def privacy_statement(self) -> Statement:
        """What the training cost and what that means; `str()` of it is in words.

        Raises:
          ValueError: the model was never trained.
        """
        return statement_of(self)

    def export_sampler(self, path: str | os.PathLike[str]) -> None:
        """Writes a SavedModel with the decoder, the latent prior, the contrast and the judge, and nothing else.

        `sample` takes scalars (num, label, seed), or (num, seed) without labels, and gives images [num, height, width,
        channels], float32 in [0, 1]; `sample_labels(num, seed)` gives labels [num], int32, as often as the release says that
        they occur; `sample_records(num, seed)` gives both, and `num_classes()` and `image_shape()` say what to expect. It
        loads with plain `tf.saved_model.load` where this package is not installed. Unlike `train.py` this neither writes a
        statement nor scans what it wrote.
        """
        reproducible.save(self.sampler(), path)

    def sampler(self, candidates: int | None = None) -> Sampler:
        """What `export_sampler` writes, in this process.

        Args:
          candidates: that the judge chooses one from; by default the refinement's, and 1 without refinement.
        """
        if candidates is None:
            candidates = 1 if self.refinement is None else self.refinement.candidates
        return Sampler(self.decoder, self.latent_prior, self.contrast, self.num_classes, self.judge, candidates)

    @property
    def kept_variables(self) -> list[keras.Variable]:
        """What goes from phase to phase, and into checkpoints: networks, all that is released, the state of public draws."""
        return [*self.encoder.variables, *self.released_variables, self._noise.state]

    @property
    def released_variables(self) -> list[keras.Variable]:
        """Of everything that a sampler holds."""
        parts = (self.decoder, self.latent_prior, self.contrast, self.judge)
        return [variable for part in parts for variable in part.variables]

    # --- Saving -----------------------------------------------------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        """What the constructor takes, and what was done with the model so far."""
        return saved.config_of(self)

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> DP2VAE:
        """The inverse of `get_config`."""
        return saved.model_of(cls, config, custom_objects)

    def get_compile_config(self) -> dict[str, Any]:
        """The optimizer."""
        return {"optimizer": keras.saving.serialize_keras_object(self.optimizer)} if self.compiled else {}

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles with the saved optimizer."""
        if config:
            self.compile(optimizer=keras.saving.deserialize_keras_object(config["optimizer"]))
            self.optimizer.build(self.trainable_variables)
