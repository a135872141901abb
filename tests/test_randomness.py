"""The noise's draws: their law, their tails, and that no two are alike."""

import numpy as np
import pytest
from scipy import stats

from tf_dp2vae.randomness import InsecureSeed, SystemEntropy, standard_normals

MILLIONS = 4_000_000


@pytest.fixture(scope="module")
def draws():
    return standard_normals(SystemEntropy().generator(), MILLIONS)


def test_law(draws):
    assert draws.dtype == np.float64
    assert stats.kstest(draws[:1_000_000], "norm").pvalue > 1e-6
    assert abs(draws.mean()) < 6 / np.sqrt(MILLIONS) and abs(draws.var() - 1) < 6 * np.sqrt(2 / MILLIONS)
    assert abs(np.corrcoef(draws[1:], draws[:-1])[0, 1]) < 6 / np.sqrt(MILLIONS)


def test_tail_has_its_share_and_its_shape(draws):
    """Beyond 4 deviations; a draw from few bits, or one cut off, would pile up or stop there."""
    beyond = np.abs(draws[np.abs(draws) > 4])
    assert stats.binomtest(len(beyond), MILLIONS, 2 * stats.norm.sf(4)).pvalue > 1e-6
    assert stats.kstest(stats.norm.sf(beyond) / stats.norm.sf(4), "uniform").pvalue > 1e-6


def test_no_two_draws_are_alike(draws):
    assert len(np.unique(draws)) > MILLIONS - 10
    fresh = [standard_normals(SystemEntropy().generator(), 5) for _ in range(3)]
    assert len({*np.concatenate(fresh)}) == 15


def test_equal_seeds_repeat_and_shapes_are_kept():
    first, second = (standard_normals(InsecureSeed(3).generator(), 4, 3) for _ in range(2))
    assert first.shape == (4, 3) and np.array_equal(first, second)
    assert standard_normals(InsecureSeed(3).generator()).shape == ()
