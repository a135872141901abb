"""The noise's draws: their law, their tails, and that no two are alike."""

import numpy as np
import pytest
import tensorflow as tf
from randomgen import AESCounter
from scipy import stats

from tf_dp2vae import randomness
from tf_dp2vae.randomness import GRID, InsecureSeed, SystemEntropy, on_grid, standard_normals
from tf_dp2vae.validation import InvalidInputError

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


def test_keys_are_what_the_operating_system_gives_and_are_asked_for_each_time(monkeypatch):
    given = [bytes([number]) * 16 for number in range(4)]
    rest = iter(given)
    monkeypatch.setattr(randomness.os, "urandom", lambda size: next(rest)[:size])
    found = SystemEntropy().generator().random(), SystemEntropy().stream().generator().random()
    keys = (int.from_bytes(key, "little") for key in given[:2])
    assert found == tuple(np.random.Generator(AESCounter(key=key)).random() for key in keys)


def test_the_generator_is_aes_in_counter_mode():
    """The block function against the example of FIPS 197, appendix C.1; and a stream is that function of 0, 1, 2, …"""
    key, plain = bytes(range(16)), bytes.fromhex("00112233445566778899aabbccddeeff")
    block = AESCounter(key=int.from_bytes(key, "little"), counter=int.from_bytes(plain, "little")).random_raw(2)
    assert block.tobytes() == bytes.fromhex("69c4e0d86a7b0430d8cdb78070b4c55a")
    generator = SystemEntropy().generator().bit_generator
    assert isinstance(generator, AESCounter)
    stream = AESCounter(key=7).random_raw(2 * 300).reshape(300, 2)
    blocks = [AESCounter(key=7, counter=index).random_raw(2) for index in range(300)]
    np.testing.assert_array_equal(stream, blocks)


def test_equal_seeds_repeat_and_shapes_are_kept():
    first, second = (standard_normals(InsecureSeed(3).generator(), 4, 3) for _ in range(2))
    assert first.shape == (4, 3) and np.array_equal(first, second)
    assert standard_normals(InsecureSeed(3).generator()).shape == ()


# --- the grid ---


@pytest.mark.parametrize("stddev", [1e-6, 0.7, 2.0, 1e9])
def test_answers_lie_on_a_coarse_grid_that_float32_holds(stddev):
    truth = np.random.default_rng(0).normal(0, 30 * stddev, 10_000)
    noised = on_grid(truth + np.random.default_rng(1).normal(0, stddev, 10_000), stddev)
    mantissa, exponent = np.frexp(np.min(np.diff(np.unique(noised))))
    step = np.ldexp(mantissa, exponent)
    assert mantissa == 0.5 and GRID / 2 < step / stddev <= GRID
    np.testing.assert_array_equal(np.mod(noised, step), 0)
    np.testing.assert_array_equal(noised.astype(np.float32).astype(np.float64), noised)
    np.testing.assert_array_equal(on_grid(tf.constant(truth), stddev), on_grid(truth, stddev))


def test_grid_points_have_the_probabilities_of_rounded_normals():
    """Chi-square against the exact law, cell by cell, out to where cells hold ten draws; and the moments."""
    stddev, truth, num = 2.0, 0.37, 400_000
    noise = stddev * standard_normals(SystemEntropy().generator(), num)
    points = on_grid(truth + noise, stddev)
    step = 2.0**-3
    cells = np.arange(-62, 69) * step  # some four deviations on each side
    inner = stats.norm.cdf(cells + step / 2, truth, stddev) - stats.norm.cdf(cells - step / 2, truth, stddev)
    tails = stats.norm.cdf(cells[0] - step / 2, truth, stddev), stats.norm.sf(cells[-1] + step / 2, truth, stddev)
    found = [(points == cell).sum() for cell in cells]
    outside = (points < cells[0]).sum(), (points > cells[-1]).sum()
    assert sum(found) + sum(outside) == num
    law = np.array([*inner, *tails]) * num
    assert stats.chisquare([*found, *outside], law * num / law.sum()).pvalue > 1e-5
    spread = stddev**2 + step**2 / 12
    assert abs(points.mean() - truth) < 5 * np.sqrt(spread / num)
    assert abs(points.var() / spread - 1) < 5 * np.sqrt(2 / num)


def test_low_bits_of_noise_no_longer_tell_neighbours_apart():
    """Mironov's attack in small: which sums can float64 noise on 0, or on 1/3, produce at all? On the grid, all alike."""
    noise = standard_normals(SystemEntropy().generator(), 20_000)
    raw = [set(0.0 + noise), set(1 / 3 + noise)]
    assert len(raw[0] & raw[1]) == 0
    gridded = [set(on_grid(truth + noise, 1.0)) for truth in (0.0, 1 / 3)]
    assert len(gridded[0] & gridded[1]) > 0.9 * len(gridded[0])


def test_without_noise_there_is_no_grid():
    assert on_grid(1 / 3, 0.0) == 1 / 3


# --- the seed for research ---


def test_insecure_seed_gives_equal_streams_whoever_draws_first():
    first, second = InsecureSeed(7), InsecureSeed(7)
    a, b = first.stream(), second.stream()
    assert a.generator().random() == b.generator().random()
    for _ in range(5):
        a.generator()  # a thread that runs ahead
    assert first.generator().random() == second.generator().random()
    assert InsecureSeed(7).generator().random() != InsecureSeed(8).generator().random()
    assert not first.secure and SystemEntropy().secure and SystemEntropy().stream().secure


@pytest.mark.parametrize("seed", [-1, 1.5, "7", None, True])
def test_insecure_seed_must_be_a_whole_number(seed):
    with pytest.raises(InvalidInputError, match="insecure_seed"):
        InsecureSeed(seed)
