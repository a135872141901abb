"""What the statement says of hyper-parameter search, and that it never says more than holds."""

from dataclasses import replace

import pytest
from recomputed import recomputed_epsilon

from tf_dp2vae.accounting import Event, Privacy, epsilon
from tf_dp2vae.statement import Statement

EVENTS = (Event("class statistics", 30.0), Event("clipped gradient sum", 2.0, 0.01, 300))
ONE = Statement(Privacy(1.0), 1000, EVENTS, True, True, True, False, "dreams", 0)


def test_trials_compose_as_often_as_they_were_run():
    entry = replace(ONE, trials=7).to_json()
    search = entry["hyper_parameter_search"]
    assert search["covered"] == "if all trials charged the same events" and entry["trials"] == 7
    assert (
        entry["epsilon"]
        == entry["epsilon_rdp"]
        == pytest.approx(recomputed_epsilon(entry["events"], 1e-5, times=7), rel=5e-3)
    )
    assert entry["epsilon_pld"] > ONE.epsilon("pld")
    assert entry["epsilon"] > search["epsilon_of_one_run"] == pytest.approx(epsilon(EVENTS, 1e-5))
    assert "private metrics" in search["means"]
    words = str(replace(ONE, trials=7))
    assert "as one of 7 trials that charged the same events" in words and "runs share" in search["means"]
    assert f"7 trials, ε = {entry['epsilon']:.4f}" in words and "private metrics" in words
    assert f"**The sampler, and all that SHA256SUMS lists beside it, is ({entry['epsilon']:.4f}," in words


def test_one_trial_costs_what_the_run_costs():
    entry = replace(ONE, trials=1).to_json()
    assert entry["hyper_parameter_search"]["epsilon_of_one_run"] == entry["epsilon"] == ONE.to_json()["epsilon"]


def test_without_trials_search_is_said_not_to_be_covered():
    search = ONE.to_json()["hyper_parameter_search"]
    assert search["covered"] is False and "Not covered" in search["means"] and "epsilon_of_one_run" not in search
    shared = replace(ONE, shared_ledger=True).to_json()["hyper_parameter_search"]
    assert shared["covered"] is False and "later ones are not" in shared["means"]
    assert "choosing hyper-parameters" in str(ONE)


@pytest.mark.parametrize("lost", ["end_to_end", "secure_noise", "private"])
def test_no_number_of_trials_brings_a_lost_guarantee_back(lost):
    statement = replace(ONE, trials=5, **{lost: False})
    entry = statement.to_json()
    assert entry["epsilon"] is None and entry["trials"] == 1
    assert "epsilon_of_one_run" not in entry["hyper_parameter_search"]
    assert "5 trials" not in str(statement)
