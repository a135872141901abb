"""Sleep: the encoder learns from the decoder's own samples, whose latents are known.

Between two rounds of private training ("wake") the encoder is trained on (z, y) → x pairs of the averaged decoder. No
record is read, so it costs nothing, and the encoder improves as the decoder does.

Reference: Hinton, Dayan, Frey and Neal 1995, "The wake-sleep algorithm for unsupervised neural networks".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import keras
import tensorflow as tf

from tf_dp2vae import objectives

if TYPE_CHECKING:
    from tf_dp2vae.model import DP2VAE

_BATCH = 256


class Sleep(keras.callbacks.Callback):
    """Puts the model to sleep at the end of each epoch but the last."""

    def __init__(self, model: DP2VAE, steps: int, learning_rate: float, last_epoch: int):
        """Args: who sleeps; steps of each sleep; Adam's learning rate; the epoch that none follows."""
        super().__init__()
        self._vae, self._steps, self._learning_rate, self._last_epoch = model, steps, learning_rate, last_epoch

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """One sleep, unless it was slept before this process; private metrics in `logs` are not looked at."""
        progress = self._vae.checkpoints.progress
        if epoch == self._last_epoch or epoch < progress.sleeps:
            return
        self._copy_averaged_weights()
        self._round(tf.constant(self._steps), tf.constant([self._vae.seed, epoch]))
        progress.sleeps += 1

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Builds what each sleep needs: a copy of the decoder to dream with, and an optimizer of the encoder's."""
        self._dreaming = keras.models.clone_model(self._vae.decoder)
        self._optimizer = keras.optimizers.Adam(
            self._learning_rate / 2
        )  # it goes on from weights that are good already
        self._variables = self._vae.encoder.trainable_variables
        self._optimizer.build(self._variables)
        self._vae.checkpoints.track("optimizer of sleep", self._optimizer.variables)
        self._round = tf.function(self._sleep, autograph=False)

    def _copy_averaged_weights(self) -> None:
        """What is dreamt with: the decoder's weights, averaged where they are trained and the optimizer averages them."""
        self._dreaming.set_weights(self._vae.decoder.get_weights())
        optimizer = self._vae.optimizer
        if optimizer.use_ema:
            for weight, average in zip(self._dreaming.trainable_variables, optimizer._model_variables_moving_average):
                weight.assign(average)

    def _sleep(self, steps: tf.Tensor, seed: tf.Tensor) -> None:
        def slept(step: tf.Tensor) -> tf.Tensor:
            self._step(tf.random.fold_in(seed, step))
            return step + 1

        tf.while_loop(lambda step: step < steps, slept, [tf.constant(0)])

    def _step(self, seed: tf.Tensor) -> None:
        model = self._vae
        for_labels, for_latents = tf.unstack(tf.random.split(seed, 2))
        labels = model.latent_prior.sample_labels(tf.constant(_BATCH), for_labels)
        latent = model.latent_prior.sample(labels, for_latents)
        images = tf.sigmoid(model.decode(latent, labels, lambda _, inputs: self._dreaming(inputs)))
        with tf.GradientTape() as tape:
            mean, log_variance = model.encode(images, labels)
            loss = tf.reduce_mean(objectives.recognition_loss(latent, mean, log_variance))
        self._optimizer.apply(tape.gradient(loss, self._variables), self._variables)
