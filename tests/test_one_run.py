"""The one-run bound against closed forms, and against simulated mechanisms whose ε is known."""

import numpy as np
import pytest
from scipy.special import expit, logit
from scipy.stats import binom, norm

from tf_dp2vae.audit.one_run import one_run_lower_bound, one_run_verdict, p_value
from tf_dp2vae.validation import InvalidInputError


@pytest.mark.parametrize("canaries", [10, 100, 1000])
def test_all_guesses_right_gives_the_closed_form(canaries):
    # Without δ the p-value is (e^ε/(1 + e^ε))^m, so the bound solves it for 5 %.
    found = one_run_lower_bound(canaries, canaries, canaries, 0.0)
    assert found == pytest.approx(logit(0.05 ** (1 / canaries)), abs=1e-3)


def test_known_values_of_the_correction_for_delta():
    # m = r = 2, v = 1, ε = 0: W is Binomial(2, 1/2), P[W ≥ 1] = 3/4, P[0 ≤ W < 1]/1 = 1/4, times 2mδ = 0.04.
    assert p_value(0.0, 0.01, 2, 2, 1) == pytest.approx(0.75 + 0.04 / 4)
    # v = 2: P[W ≥ 2] = 1/4; i = 1 gives (1/2)/1, i = 2 gives (3/4)/2 < 1/2.
    assert p_value(0.0, 0.01, 2, 2, 2) == pytest.approx(0.25 + 0.04 / 2)
    # Canaries that are not guessed count for the failures all the same.
    assert p_value(0.0, 0.01, 20, 2, 2) == pytest.approx(0.25 + 0.4 / 2)


@pytest.mark.parametrize("guesses, right", [(50, 30), (200, 199), (40, 40), (7, 0)])
def test_correction_agrees_with_a_loop(guesses, right):
    for epsilon in (0.0, 0.7, 3.0):
        chance, delta, canaries = np.exp(epsilon) / (1 + np.exp(epsilon)), 1e-4, 300
        masses = [binom.pmf(w, guesses, chance) for w in range(guesses + 1)]
        lift = max((sum(masses[right - i : right]) / i for i in range(1, right + 1)), default=0.0)
        expected = sum(masses[right:]) + 2 * canaries * delta * lift
        assert p_value(epsilon, delta, canaries, guesses, right) == pytest.approx(expected)


def test_bound_grows_with_right_guesses_and_shrinks_with_delta_and_confidence():
    bounds = [one_run_lower_bound(500, 200, right, 1e-5) for right in range(100, 201, 5)]
    assert np.all(np.diff(bounds) >= 0) and bounds[0] == 0 < bounds[-1]
    assert one_run_lower_bound(500, 200, 190, 1e-3) < one_run_lower_bound(500, 200, 190, 1e-5)
    assert one_run_lower_bound(500, 200, 190, 1e-5, 0.99) < one_run_lower_bound(500, 200, 190, 1e-5)


@pytest.mark.parametrize("epsilon", [0.2, 1.0, 4.0])
@pytest.mark.parametrize("delta", [0.0, 1e-3])
def test_bound_on_randomised_response_is_right_nineteen_times_in_twenty(epsilon, delta):
    """Each coin is told truly with probability e^ε/(1 + e^ε), and with probability δ it is told outright."""
    random, canaries, runs = np.random.default_rng(1), 400, 4000
    truth = delta + (1 - delta) * expit(epsilon)
    counts = random.binomial(canaries, truth, runs)
    bounds = {right: one_run_lower_bound(canaries, canaries, int(right), delta) for right in np.unique(counts)}
    found = np.array([bounds[right] for right in counts])
    # Three deviations of a rate of 5 % over 4,000 runs are 1 %.
    assert np.mean(found > epsilon) < 0.06
    if delta == 0:
        assert np.median(found) > 0.75 * epsilon - 0.15, "a bound that is always far below proves nothing"


def test_abstention_keeps_the_bound_valid_on_a_gaussian_mechanism_and_makes_it_stronger():
    """m disjoint coordinates, each noised: ε at δ of one Gaussian answer is known in closed form."""
    random, sigma, delta, canaries = np.random.default_rng(2), 1.0, 1e-5, 5000
    grid = np.linspace(0, 12, 4001)
    spent = norm.cdf(1 / (2 * sigma) - grid * sigma) - np.exp(grid) * norm.cdf(-1 / (2 * sigma) - grid * sigma)
    epsilon = grid[np.argmax(spent <= delta)]
    found = {share: [] for share in (0.01, 1.0)}
    for _ in range(60):
        included = random.random(canaries) < 0.5
        scores = included - 0.5 + sigma * random.normal(size=canaries)
        for share in found:
            found[share].append(one_run_verdict(scores, included, delta, shares=(share,)).lower_bound)
    assert max(found[0.01]) < epsilon
    assert np.median(found[0.01]) > 1.2 * np.median(found[1.0]) > 0.5


def test_several_attempts_share_the_confidence():
    """Scores that know nothing: ε is 0, and the best of three attempts may exceed it one time in twenty at most."""
    random = np.random.default_rng(3)
    wrong = [
        one_run_verdict(random.normal(size=300), random.random(300) < 0.5, 0.0).lower_bound > 0 for _ in range(1500)
    ]
    assert np.mean(wrong) < 0.067


@pytest.mark.parametrize("counts", [(0, 0, 0), (10, 11, 5), (10, 5, 6), (10, 5, -1)])
def test_impossible_counts_are_refused(counts):
    with pytest.raises(InvalidInputError, match="each must be at most the next"):
        p_value(1.0, 1e-5, *counts)


def test_pairs_are_judged_by_what_epsilon_says_of_replacement():
    """A coin chose one of two records; telling which is right with probability e^2ε/(1 + e^2ε) at most."""
    random, epsilon = np.random.default_rng(4), 0.5
    counts = random.binomial(400, expit(2 * epsilon), 2000)
    bounds = {right: one_run_lower_bound(400, 400, int(right), 0.0, paired=True) for right in np.unique(counts)}
    found = np.array([bounds[right] for right in counts])
    assert np.mean(found > epsilon) < 0.065 and np.median(found) > 0.5 * epsilon
    assert one_run_lower_bound(400, 400, 300, 1e-4, paired=True) < one_run_lower_bound(400, 400, 300, 1e-5, paired=True)
