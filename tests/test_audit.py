"""The bound's numbers, a leak that must be caught, and the transcript of `dreams` with and without its noise."""

import keras
import numpy as np
import pytest

from tf_dp2vae.accounting import CLASS_STATISTICS, FEATURE_MEANS, GRADIENT_SUM, Privacy
from tf_dp2vae.audit.bounds import best_threshold, epsilon_lower_bound, verdict_of
from tf_dp2vae.audit.encoder_matching import EncoderMatching
from tf_dp2vae.audit.transcript import TranscriptAudit, gaussian_log_ratio
from tf_dp2vae.model import DP2VAE
from tf_dp2vae.networks import build_encoder
from tf_dp2vae.validation import InvalidInputError

DELTA = 1e-5


@pytest.mark.parametrize("releases, expected", [(15, 1.28), (50, 2.57), (100, 3.28), (200, 3.98)])
def test_perfect_separation_gives_the_known_bounds(releases, expected):
    assert epsilon_lower_bound(releases, releases, 0, releases, DELTA) == pytest.approx(expected, abs=0.005)


def test_bound_grows_with_hits_and_shrinks_with_false_alarms():
    counts = np.arange(201)
    assert np.all(np.diff(epsilon_lower_bound(counts, 200, 3, 200, DELTA)) >= 0)
    assert np.all(np.diff(epsilon_lower_bound(150, 200, counts, 200, DELTA)) <= 0)
    assert epsilon_lower_bound(200, 200, 0, 200, 0.1) < epsilon_lower_bound(200, 200, 0, 200, DELTA)


def test_bound_is_right_nineteen_times_in_twenty():
    # Randomised response with ε = 1: it answers truly with probability e/(1 + e).
    random, truth = np.random.default_rng(0), np.e / (1 + np.e)
    hits, alarms = random.binomial(200, [[truth], [1 - truth]], (2, 2000))
    assert np.mean(epsilon_lower_bound(hits, 200, alarms, 200, DELTA) > 1.0) < 0.05


@pytest.mark.parametrize("counts", [(-1, 10, 0, 10), (11, 10, 0, 10), (1, 10, 11, 10), (0, 0, 0, 10)])
def test_impossible_counts_are_refused(counts):
    with pytest.raises(InvalidInputError, match="must lie in 0 to"):
        epsilon_lower_bound(*counts, DELTA)


def test_threshold_lies_in_the_gap():
    assert best_threshold(np.array([5.0, 4.0, 6.0]), np.array([1.0, 2.0, 0.0]), DELTA) == 3.0


def test_a_release_that_leaks_is_caught_and_an_identical_pair_is_not():
    random = np.random.default_rng(0)
    noise = random.normal(size=(2, 300))
    assert verdict_of(noise[0] + 20, noise[1], 100, DELTA).lower_bound == pytest.approx(3.98, abs=0.005)
    assert verdict_of(noise[0], noise[1], 100, DELTA).lower_bound == 0


def test_gaussian_log_ratio_is_that_of_the_densities():
    answer, mean_in, mean_out = np.array([0.3, -1.0]), np.array([1.0, 0.0]), np.array([0.0, 0.5])
    log_density = [-np.sum((answer - mean) ** 2) / (2 * 0.7**2) for mean in (mean_in, mean_out)]
    assert gaussian_log_ratio(answer, mean_in, mean_out, 0.7) == pytest.approx(log_density[0] - log_density[1])


def test_encoder_matching_tells_which_encoder_a_decoder_fits():
    shape = (8, 8, 1)
    images = np.random.default_rng(0).integers(0, 256, (32, *shape)).astype(np.uint8)
    encoders = [build_encoder(shape, 4, width=2, seed=seed) for seed in (0, 100)]
    latent = keras.Input((4,))
    decoder = keras.Model(latent, keras.layers.Reshape(shape)(keras.layers.Dense(64)(latent)))
    model = DP2VAE(build_encoder(shape, 4, width=2), decoder)
    matching = EncoderMatching(model, images, np.zeros(32, np.int32), *(encoder.get_weights() for encoder in encoders))
    pixels = images / np.float32(255)
    scores = []
    for encoder in encoders:
        inputs = np.hstack([encoder([pixels])[0], np.ones((32, 1))])
        fitted = np.linalg.lstsq(inputs, 4 * pixels.reshape(32, -1) - 2, rcond=None)[0]
        scores.append(matching.score([fitted[:-1], fitted[-1]]))
    assert scores[0] > 0 > scores[1]


def _verdict(audit, releases, calibration):
    scores = [np.array([audit.log_ratio(member) for _ in range(releases)]) for member in (True, False)]
    return verdict_of(*scores, calibration, DELTA)


def test_transcript_of_dreams_stays_below_the_claim():
    claim = Privacy(epsilon=1.0, delta=DELTA)
    assert _verdict(TranscriptAudit(claim, steps=1), 80, 30).lower_bound < claim.epsilon


@pytest.mark.parametrize("mechanism", [CLASS_STATISTICS, FEATURE_MEANS])
def test_transcript_exceeds_the_claim_without_the_noise_of_one_release(mechanism):
    claim = Privacy(epsilon=1.0, delta=DELTA)
    broken = TranscriptAudit(claim, steps=0, unnoised=mechanism)
    assert _verdict(broken, 30, 10).lower_bound > claim.epsilon


def test_transcript_matches_the_gaussian_theory_at_the_worst_case_record():
    # Each answer moves by exactly its sensitivity, so the log ratio is N(μ²/2, μ²) with μ² = Σ 1/σ².
    audit = TranscriptAudit(Privacy(epsilon=5.0, delta=DELTA), steps=0)
    squared = sum(1 / event.noise_multiplier**2 for event in audit.plan.releases)
    ratios = np.array([audit.log_ratio(True) for _ in range(400)])
    assert ratios.mean() == pytest.approx(squared / 2, abs=4 * np.sqrt(squared / 400))
    assert ratios.std() == pytest.approx(np.sqrt(squared), rel=0.2)


def test_an_unnoised_gradient_step_tells_whether_the_target_was_drawn():
    audit = TranscriptAudit(Privacy(epsilon=1.0, delta=DELTA), steps=4, unnoised=GRADIENT_SUM)
    assert all(audit.log_ratio(False) < 10 for _ in range(20))
    assert sum(audit.log_ratio(True) > 1e6 for _ in range(40)) > 10
