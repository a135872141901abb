"""The published mechanism, to be run many times: pre-training on the records without noise, then DP-SGD on the decoder."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from tf_dp2vae import datasets, planning
from tf_dp2vae.accounting import Privacy
from tf_dp2vae.gradients import BookKeepingEngine, plain_apply
from tf_dp2vae.ledger import Ledger
from tf_dp2vae.mechanisms import Mechanisms
from tf_dp2vae.model import DP2VAE
from tf_dp2vae.networks import build_encoder
from tf_dp2vae.optimizers import DPSGD
from tf_dp2vae.pretraining import Unprotected
from tf_dp2vae.randomness import Entropy, InsecureSeed, SystemEntropy
from tf_dp2vae.records import FULL_SCALE, Records
from tf_dp2vae.sampling import PoissonBatch, PoissonSource, unit_interval

CLAIM = Privacy(epsilon=1.0, delta=1e-5)
NUM_RECORDS, LATENT, SAMPLING_RATE, STEPS = 2000, 8, 0.25, 8
DP_SGD_RATE, PRETRAIN_BATCH, SEED = 0.1, 200, 7


class PublishedMechanism:
    """`--pretrain unprotected` on D and D′, to be run many times: the last record is the one that D′ nulls.

    `DP2VAE.fit` compiles anew for each run; here both phases are compiled once. Losses, mechanism, engine, sampling and
    optimizer are the package's own.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, pretrain_rate: float):
        """Calibrates the noise to the claim; trains nothing.

        Args:
          images: of D, [N, 28, 28, 1], uint8.
          labels: of D, [N].
          pretrain_rate: learning rate of pre-training.
        """
        self.images, self.labels = images, labels
        encoder = build_encoder(images.shape[1:], LATENT, 10, width=8)
        self.model = DP2VAE(encoder, dense_decoder(), privacy=CLAIM, pretraining=Unprotected())
        self.plan = planning.plan(CLAIM, SAMPLING_RATE, STEPS)
        # A null record adds zero to whatever batch it is in, so D′ may simply not hold it: q·N stays D's.
        self._worlds = [Records(images[:n], labels[:n], 10) for n in (len(images) - 1, len(images))]
        entropy = SystemEntropy()
        self._mechanisms = Mechanisms(Ledger(), entropy)
        self._decoder = self.model.decoder.trainable_variables
        self._num_weights = self.model.decoder.count_params()
        self._sources = [self._source(world, SAMPLING_RATE, 130, entropy) for world in self._worlds]
        self._networks = encoder.trainable_variables + self._decoder
        self._engine = BookKeepingEngine()
        self._adam, self._dp_sgd = keras.optimizers.Adam(pretrain_rate), DPSGD(DP_SGD_RATE)
        self._adam.build(self._networks)
        self._dp_sgd.configure(CLAIM.l2_norm_clip, self.plan.noise_multiplier, SAMPLING_RATE * len(images))
        self._dp_sgd.build(self._decoder)
        self._fresh = [(v, v.numpy()) for v in (*self._networks, *self._adam.variables)]

    def _source(self, records: Records, rate: float, physical: int, entropy: Entropy) -> PoissonSource:
        return PoissonSource(records, rate, physical, entropy, self._num_weights, self.model.private_draws)

    def _reset(self) -> None:
        for variable, value in self._fresh:
            variable.assign(value)

    def pretrained(self, member: bool, seed: int, epochs: int) -> list[np.ndarray]:
        """The encoder's weights A(D), or A(D′) whose batches hold a slot of weight zero; the seed determines them."""
        self._reset()
        weights = np.ones(len(self.images), np.float32)
        weights[-1] = float(member)
        data = tf.constant(self.images), tf.constant(self.labels), tf.constant(weights)
        random = np.random.default_rng(seed)
        for epoch in range(epochs):
            order = random.permutation(len(weights)).reshape(-1, PRETRAIN_BATCH)
            self._ordinary_epoch(*data, tf.constant(order), tf.constant([seed, epoch], tf.int64))
        return self.model.encoder.get_weights()

    @tf.function
    def _ordinary_epoch(self, images, labels, weights, order, key):
        for step in tf.range(tf.shape(order)[0]):
            chosen = tf.ensure_shape(order[step], [PRETRAIN_BATCH])
            own = tf.random.fold_in(key, step)
            noise = tf.random.stateless_normal([PRETRAIN_BATCH, 1, LATENT], own)
            with tf.GradientTape() as tape:
                image, label = unit_interval(tf.gather(images, chosen)), tf.gather(labels, chosen)
                elbo = self.model.elbo(plain_apply, image, label, noise)
                loss = tf.reduce_mean(tf.gather(weights, chosen) * (elbo.reconstruction + elbo.kl))
            self._adam.apply(tape.gradient(loss, self._networks), self._networks)

    def release(self, member: bool, encoder: list[np.ndarray]) -> list[np.ndarray]:
        """The decoder's weights after DP-SGD with fresh noise, from the public initial decoder."""
        self._reset()
        self.model.encoder.set_weights(encoder)
        for _ in range(STEPS):
            self._mechanisms.charge(self.plan.step)
            self._private_step(self._sources[member].batch())
        return [variable.numpy() for variable in self._decoder]

    @tf.function(reduce_retracing=True)
    def _private_step(self, batch):
        def noised_sum(variables, l2_norm_clip, noise_multiplier):
            return self._clipped_sum(batch, variables, l2_norm_clip, noise_multiplier)

        self._dp_sgd.apply(self._dp_sgd.private_gradients(noised_sum, self._decoder), self._decoder)

    def _clipped_sum(self, batch, variables, l2_norm_clip, noise_multiplier):
        return self._mechanisms.gradient_sum(
            self._engine, self.model, batch, variables, l2_norm_clip, noise_multiplier
        )[0]

    def expected(self, member: bool, encoder: list[np.ndarray]) -> list[np.ndarray]:
        """What the attacker reckons the release to be without noise: full batches, latent draws common to both worlds."""
        self._reset()
        self.model.encoder.set_weights(encoder)
        # One seed, and draws by place from the first on: D′, which lacks the last record, has the others' draws in common.
        everybody = self._source(self._worlds[member], 1.0, 250, InsecureSeed(SEED))
        for _ in range(STEPS):
            self._noiseless_step(everybody.batch())
        return [variable.numpy() for variable in self._decoder]

    @tf.function(reduce_retracing=True)
    def _noiseless_step(self, batch: PoissonBatch) -> None:
        for variable, total in zip(self._decoder, self._clipped_sum(batch, self._decoder, CLAIM.l2_norm_clip, 0.0)):
            variable.assign_sub(DP_SGD_RATE * total / len(self.images))


def dense_decoder() -> keras.Model:
    """Two dense layers."""
    latent, label = keras.Input((LATENT,)), keras.Input((10,))
    init = [keras.initializers.GlorotUniform(seed=seed) for seed in (1, 2)]
    hidden = layers.Dense(32, activation="elu", kernel_initializer=init[0])(layers.Concatenate()([latent, label]))
    pixels = layers.Dense(784, kernel_initializer=init[1])(hidden)
    return keras.Model([latent, label], layers.Reshape((28, 28, 1))(pixels))


def worst_case_records() -> tuple[np.ndarray, np.ndarray]:
    """MNIST's first records and the attacker's: an all-white image, which calls itself a 0."""
    with datasets.load("mnist").train.opened() as (images, labels):
        images, labels = images[:NUM_RECORDS].copy(), labels[:NUM_RECORDS].copy()
    images[-1], labels[-1] = FULL_SCALE, 0
    return images, labels
