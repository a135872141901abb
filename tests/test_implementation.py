"""Breaks planted in the mechanisms: each is caught, the sound parts are not, and each test sees its own break alone."""

import numpy as np
import pytest
from scipy import stats

from benchmarks.broken import variants
from tf_dp2vae.accounting import Privacy
from tf_dp2vae.audit.dirac import DiracStep, Parts, numbered, numbers_of
from tf_dp2vae.audit.gradient_canaries import GradientCanaries
from tf_dp2vae.audit.implementation import ALARM, TESTS, ImplementationTests
from tf_dp2vae.randomness import SystemEntropy
from tf_dp2vae.sampling import PoissonSource

BROKEN = variants(expected_batch_size=8)
CATCHES = {
    "no clipping": "sensitivity",
    "half the noise": "noise",
    "division by the drawn batch": "division",
    "reused batch": "draws",
    "per-layer clip counted once": "sensitivity",
    "un-noised statistics": "statistics_noise",
    "un-noised features": "features_noise",
    "statistics under another bound": "release_sensitivity",
}
CLAIM = Privacy(epsilon=1.0, delta=1e-5)


@pytest.fixture(scope="module")
def sound():
    return ImplementationTests()


def test_sound_parts_raise_no_alarm(sound):
    assert min(sound.p_values().values()) > ALARM


@pytest.mark.parametrize(
    "test", ["noise", "draws", "batch_sizes", "statistics_noise", "moments_noise", "features_noise"]
)
def test_p_values_of_sound_parts_are_uniform(sound, test):
    """Or the alarm's rate would not be what it says. Both sides, so a test that is too lenient fails as well."""
    assert stats.kstest([getattr(sound, test)() for _ in range(60)], "uniform").pvalue > 1e-5


def test_every_break_has_its_test():
    assert set(CATCHES) == set(BROKEN) - {"sound"} and set(CATCHES.values()) < set(TESTS)


@pytest.mark.parametrize("broken, test", CATCHES.items())
def test_break_is_caught(broken, test):
    assert getattr(ImplementationTests(BROKEN[broken]), test)() < ALARM


def test_noise_on_statistics_is_found_missing_whatever_the_answer_says_of_it():
    tests = ImplementationTests(BROKEN["un-noised statistics"])
    assert tests.statistics_noise() < ALARM < tests.moments_noise()


def test_a_dirac_step_moves_the_drawn_records_entries_by_the_clip_and_no_others():
    numbers = np.array([3, 70_000, 12])
    images = numbered(numbers, np.ones(3, bool))
    with images.opened() as (stored, _):
        np.testing.assert_array_equal(numbers_of(stored), numbers)
    batch = PoissonSource(
        numbered(np.array([3, 12]), np.array([True, False])), 1.0, 16, SystemEntropy(), 4 * 20
    ).batch()
    expected = np.zeros((4, 20))
    expected[:, 3] = 1 / 2
    np.testing.assert_allclose(DiracStep(20, 0.0, 7.0).answer(batch), expected, atol=1e-6)


def test_one_run_bound_lies_below_the_claim_for_sound_parts_and_above_for_broken_ones():
    bounds = {
        name: GradientCanaries(CLAIM, steps=20, canaries=4000, parts=parts).run().lower_bound
        for name, parts in {"sound": Parts(), "no clipping": BROKEN["no clipping"]}.items()
    }
    assert bounds["sound"] < CLAIM.epsilon < bounds["no clipping"]
