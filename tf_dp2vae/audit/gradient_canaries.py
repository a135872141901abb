"""The white-box one-run audit: of many canaries with gradients along axes of their own, which were in the data?

The attacker sees the weights after every step of one run, knows everything but the coins, and scores each canary by its
log likelihood ratio. The canaries do not disturb one another, so one run tests as many pairs of neighbours as there are
canaries. The ratio is taken as if the noise were half of what is claimed: any score gives a valid bound, and this one is
strong where something is broken.

Reference: Steinke, Nasr, Jagielski 2023; Nasr et al. 2023, "Tight Auditing of Differentially Private Machine Learning"
(Dirac canaries).
"""

from __future__ import annotations

import math

import numpy as np

from tf_dp2vae import planning
from tf_dp2vae.accounting import Privacy
from tf_dp2vae.audit.dirac import SOUND, TABLES, DiracStep, Parts, numbered
from tf_dp2vae.audit.one_run import OneRunVerdict, one_run_verdict
from tf_dp2vae.randomness import SystemEntropy

_PHYSICAL_BATCH = 256
_SHARES = (0.01, 0.03, 0.1)


class GradientCanaries:
    """DP-SGD on canaries alone, calibrated to a claim.

    Attributes:
      expected_batch_size: q·N.
    """

    def __init__(
        self,
        claim: Privacy,
        steps: int = 100,
        sampling_rate: float = 0.02,
        canaries: int = 20_000,
        parts: Parts = SOUND,
    ):
        """Plans the run; reads no coin yet.

        Args:
          claim: ε and δ.
          steps: private steps.
          sampling_rate: q. Where it is small, ε grows fastest with a break.
          canaries: m, well below 1/δ; each is one of N = m records, a null one where its coin says so.
          parts: what the steps are made of.
        """
        self._plan = planning.plan(claim, sampling_rate, steps)
        self._delta, self._canaries, self._parts = claim.delta, canaries, parts
        self.expected_batch_size = sampling_rate * canaries
        self._step = DiracStep(canaries, self._plan.noise_multiplier, self.expected_batch_size, parts)

    def run(self) -> OneRunVerdict:
        """One run on fresh coins, and what the attacker's guesses prove."""
        entropy = SystemEntropy()
        included = entropy.generator().random(self._canaries) < 0.5
        numbers = np.flatnonzero(included)
        records = numbered(numbers, np.ones(len(numbers), bool), self._canaries - len(numbers))
        rate, variance = self._plan.sampling_rate, (self._plan.noise_multiplier / 2) ** 2
        source = self._parts.source(records, rate, _PHYSICAL_BATCH, entropy, TABLES * self._canaries)
        scores = np.zeros(self._canaries)
        for _ in range(self._plan.steps):
            self._step.mechanisms.charge(self._plan.step)
            # Along its own axis a canary that was drawn stands at 1 = C, one that was not at 0.
            seen = self._step.answer(source.batch()).sum(0) / math.sqrt(TABLES)
            scores += np.logaddexp(math.log1p(-rate), math.log(rate) + (seen - 0.5) / variance)
        return one_run_verdict(scores, included, self._delta, shares=_SHARES)
