"""Proof by replay: a recorder and a player around the mechanisms.

A run on D is recorded: every answer, and a digest of all that went in besides the records. It is run again on D′, which
differs in every record, while the mechanisms return the recorded answers. If calls, digests and release come out the same,
then on that transcript everything released is post-processing of the answers.
"""

from __future__ import annotations

import hashlib
import sys
from contextlib import contextmanager

import numpy as np

from tf_dp2vae.ledger import Ledger
from tf_dp2vae.mechanisms import Mechanisms
from tf_dp2vae.randomness import SystemEntropy
from tf_dp2vae.records import Records
from tf_dp2vae.sampling import PoissonSource


class ReplayMismatchError(AssertionError):
    """The second run asked something else than the first: something besides the answers came from the records."""


class SealedRecords(Records):
    """Records that only the Poisson source may open: it carries them to mechanisms that, in a replay, do not look."""

    @contextmanager
    def opened(self):
        frame = sys._getframe()
        while frame is not None and not isinstance(frame.f_locals.get("self"), PoissonSource):
            frame = frame.f_back
        if frame is None:
            raise ReplayMismatchError("a record was read outside a mechanism")
        with super().opened() as content:
            yield content


def digest(*parts) -> str:
    """sha256 over numbers, arrays and lists of them."""
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, (list, tuple)):
            sha.update(digest(*part).encode())
        else:
            array = np.asarray(part)
            sha.update(f"{array.shape}{array.dtype}".encode() + array.tobytes())
    return sha.hexdigest()


class Recorder(Mechanisms):
    """Answers as ever, and writes down each call."""

    def __init__(self, model):
        super().__init__(Ledger(), SystemEntropy())
        self.model, self.calls = model, []

    def _public_state(self):
        return [variable.numpy() for variable in self.model.kept_variables]

    def _through(self, name, inputs, compute, event=None):
        answer = compute()
        self.calls.append((name, digest(inputs), answer))
        return answer

    def gradient_sum(self, engine, loss, batch, variables, l2_norm_clip, noise_multiplier):
        inputs = [self._public_state(), l2_norm_clip, noise_multiplier, self.model.plan.sampling_rate, len(self.calls)]
        # The loss beside the answer is no answer: it is this run's own, and nothing released may depend on it.
        noised, private_loss = super().gradient_sum(engine, loss, batch, variables, l2_norm_clip, noise_multiplier)
        return self._through("gradient sum", inputs, lambda: noised), private_loss

    def class_statistics(self, records, event, basis, bound, weights):
        compute = super().class_statistics
        return self._through(
            "class statistics",
            [basis, bound, weights, event.noise_multiplier],
            lambda: compute(records, event, basis, bound, weights),
            event,
        )

    def latent_moments(self, records, event, encode, bound, weights, shared_second):
        # What the encoder does to fixed images stands for everything that it is made of.
        probe = np.random.default_rng(5).random((8, *records.image_shape), np.float32)
        encoded = encode(probe, np.arange(8, dtype=np.int32) % max(records.num_classes, 1))
        compute = super().latent_moments
        return self._through(
            "latent moments",
            [encoded, bound, weights, shared_second, event.noise_multiplier],
            lambda: compute(records, event, encode, bound, weights, shared_second),
            event,
        )

    def feature_means(self, records, event, features):
        probe = np.random.default_rng(6).random((8, *records.image_shape), np.float32)
        compute = super().feature_means
        return self._through(
            "feature sums",
            [features(probe), event.noise_multiplier],
            lambda: compute(records, event, features),
            event,
        )


class Player(Recorder):
    """Gives the recorded answers without looking at any record, and checks that it is asked the same."""

    def __init__(self, model, calls):
        super().__init__(model)
        self._expected = list(calls)

    def _through(self, name, inputs, compute, event=None):
        position = len(self.calls)
        if position >= len(self._expected):
            raise ReplayMismatchError(f"call {position} ({name}) was not made the first time")
        recorded_name, recorded_digest, answer = self._expected[position]
        if name != recorded_name:
            raise ReplayMismatchError(f"call {position} is {name}, was {recorded_name}")
        if digest(inputs) != recorded_digest:
            raise ReplayMismatchError(f"call {position} ({name}) got other inputs")
        self.calls.append((name, recorded_digest, answer))
        if event is not None:
            self.charge(event)  # the mechanism itself, which is not run, would have
        return answer

    def finish(self):
        """Raises where the first run had asked for more."""
        if len(self.calls) != len(self._expected):
            raise ReplayMismatchError(f"{len(self.calls)} calls, the first run made {len(self._expected)}")
