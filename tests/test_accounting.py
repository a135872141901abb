"""The ledger survives crashes and refuses strangers; noise costs what a direct dp_accounting call says."""

import json
import math
import warnings
from dataclasses import replace

import dp_accounting
import pytest
from conftest import DREAMS, images_and_labels, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from recomputed import recomputed_epsilon

from tf_dp2vae import accounting
from tf_dp2vae.accounting import BudgetExceededError, Event, Privacy, merged
from tf_dp2vae.ledger import Ledger
from tf_dp2vae.planning import plan
from tf_dp2vae.pretraining import NoPretraining
from tf_dp2vae.validation import InvalidInputError

STEP = Event("clipped gradient sum", 1.5, 0.1)
SHARES = {"class statistics": 0.14, "latent moments": 0.1}


def direct_epsilon(events, delta, accountant):
    """ε of (σ, q, count) triples by dp_accounting alone, at its own default settings."""
    named = [{"noise_multiplier": sigma, "sampling_rate": rate, "count": count} for sigma, rate, count in events]
    return recomputed_epsilon(named, delta, accountant)


@pytest.mark.parametrize("accountant", ["rdp", "pld"])
def test_a_budget_of_hundreds_is_kept_and_not_spent_to_its_end(accountant):
    planned = plan(Privacy(1000.0, 1e-5, accountant=accountant), 0.02, 100, SHARES)
    assert min(planned.noise_multiplier, *(event.noise_multiplier for event in planned.releases)) >= 0.05
    assert 100 < direct_epsilon(triples(planned.events), 1e-5, "rdp") <= 1000


def triples(events):
    return [(event.noise_multiplier, event.sampling_rate, event.count) for event in events]


# --- calibration ---


@pytest.mark.parametrize(
    "accountant, epsilon, shares",
    [("rdp", 0.3, {}), ("rdp", 1.0, SHARES), ("rdp", 10.0, SHARES), ("pld", 2.0, SHARES)],
)
def test_calibrated_noise_costs_the_target_and_hardly_less(accountant, epsilon, shares):
    calibrated = plan(Privacy(epsilon, 1e-5, accountant), 0.1, 20, shares)
    spent = direct_epsilon(triples(calibrated.events), 1e-5, accountant)
    assert 0.99 * epsilon <= spent <= epsilon * (1 + 1e-3)
    assert accounting.epsilon(calibrated.events, 1e-5, accountant) <= epsilon
    assert [event.mechanism for event in calibrated.releases] == list(shares)


def test_shares_split_the_budget_of_gaussian_releases():
    one = plan(Privacy(1.0, 1e-5), 0.1, 20, {"a": 0.04, "b": 0.36}).releases
    assert math.isclose(one[0].noise_multiplier, 3 * one[1].noise_multiplier, rel_tol=1e-6)
    whole = one[0].noise_multiplier * math.sqrt(0.04)
    assert direct_epsilon([(whole, 1.0, 1)], 1e-5, "rdp") == pytest.approx(1.0, rel=0.01)


def test_gaussian_mechanism_agrees_with_the_analytic_formula():
    """Balle and Wang 2018, theorem 8: the exact δ of one Gaussian release."""
    sigma, epsilon = 2.0, accounting.epsilon([Event("x", 2.0)], 1e-5, "pld")

    def phi(t):
        return 0.5 * math.erfc(-t / math.sqrt(2))

    delta = phi(0.5 / sigma - epsilon * sigma) - math.exp(epsilon) * phi(-0.5 / sigma - epsilon * sigma)
    assert delta == pytest.approx(1e-5, rel=0.02)


def test_what_the_ledger_holds_already_is_counted():
    held = (Event("class statistics", 6.0), Event(STEP.mechanism, 3.0, 0.1, 10))
    calibrated = plan(Privacy(1.0, 1e-5), 0.1, 20, {}, held)
    assert 0.99 <= direct_epsilon(triples([*held, *calibrated.events]), 1e-5, "rdp") <= 1.001
    assert calibrated.noise_multiplier > plan(Privacy(1.0, 1e-5), 0.1, 20).noise_multiplier


@pytest.mark.parametrize("accountant, tolerance", [("rdp", 3e-4), ("pld", 5e-3)])
def test_noise_is_what_a_search_by_dp_accounting_finds(accountant, tolerance):
    held, relation = Event("class statistics", 6.0), dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
    fresh = {
        "rdp": lambda: dp_accounting.rdp.RdpAccountant(accounting.RDP_ORDERS, relation),
        # Coarser than ours, to take seconds.
        "pld": lambda: dp_accounting.pld.PLDAccountant(relation, value_discretization_interval=1e-3),
    }
    found = dp_accounting.calibrate_dp_mechanism(
        fresh[accountant],
        lambda sigma: dp_accounting.ComposedDpEvent([held.dp_event(), Event("steps", sigma, 0.2, 4).dp_event()]),
        1.5,
        1e-5,
        dp_accounting.ExplicitBracketInterval(1.0, 3.0),
        tol=1e-4,
    )
    calibrated = plan(Privacy(1.5, 1e-5, accountant), 0.2, 4, {}, (held,))
    assert calibrated.noise_multiplier == pytest.approx(found, abs=tolerance)


def test_an_epsilon_that_no_noise_reaches_is_refused():
    with pytest.raises(InvalidInputError, match=r"epsilon=0.0001 with delta=1e-12: no noise level.*larger epsilon"):
        plan(Privacy(1e-4, 1e-12), 0.5, 10)


def test_an_epsilon_that_rounding_hides_is_refused_in_the_same_words(monkeypatch):
    def rounded_below_zero(accountant, delta):
        raise ValueError("Renyi divergence cannot be negative.")

    monkeypatch.setattr(dp_accounting.rdp.RdpAccountant, "get_epsilon", rounded_below_zero)
    with pytest.raises(InvalidInputError, match=r"epsilon=0.001 .*no noise level.*cannot be negative.*larger epsilon"):
        plan(Privacy(1e-3, 1e-5), 0.5, 10)


def test_pld_goes_on_where_the_ledger_is_full_by_rdp():
    target = 1.05
    held = plan(Privacy(1.0, 1e-5, "pld"), 1.0, 20, SHARES).events
    assert direct_epsilon(triples(held), 1e-5, "rdp") > 1.05
    calibrated = plan(Privacy(target, 1e-5, "pld"), 1.0, 20, SHARES, held)
    assert 0.99 * target <= direct_epsilon(triples([*held, *calibrated.events]), 1e-5, "pld") <= target * (1 + 1e-3)


def test_pld_finds_the_noise_of_steps_that_rdp_leaves_nothing_for():
    privacy, shares = Privacy(1.0, 1e-5, "pld"), {"a": 0.65, "b": 0.25}
    calibrated = plan(privacy, 1.0, 20, shares)
    assert direct_epsilon(triples(calibrated.releases), 1e-5, "rdp") > 1
    assert 0.99 <= direct_epsilon(triples(calibrated.events), 1e-5, "pld") <= 1.001


def test_noise_that_rdp_would_ask_for_and_pld_hardly_is_found_without_a_long_search():
    calibrated = plan(Privacy(13.5, 1e-5, "pld"), 1.0, 1)
    assert direct_epsilon(triples(calibrated.events), 1e-5, "rdp") > 13.5
    assert 0.95 * 13.5 <= direct_epsilon(triples(calibrated.events), 1e-5, "pld") <= 13.5


@pytest.mark.parametrize("spent", [0.5, 0.999, 1.0, 3.0])
def test_spent_budget_is_refused_with_both_numbers(spent):
    held = plan(Privacy(spent, 1e-5), 1.0, 20).events
    if spent < 0.9:
        plan(Privacy(1.0, 1e-5), 0.1, 20, {}, held)
        return
    with pytest.raises(BudgetExceededError) as refusal:
        plan(Privacy(1.0, 1e-5), 0.1, 20, {}, held)
    numbers = accounting.epsilon(held, 1e-5)
    assert "epsilon=1 " in str(refusal.value) and f"{numbers:.4g}" in str(refusal.value)


def test_shares_of_everything_are_refused():
    with pytest.raises(InvalidInputError, match="less than 1"):
        plan(Privacy(), 0.1, 5, {"a": 0.6, "b": 0.4})


BAD_PRIVACY = [
    *({"epsilon": value} for value in (0, -1, math.nan, math.inf, 1001, "1", None)),
    *({"delta": value} for value in (0, 1, -0.1, math.nan, "small")),
    *({"l2_norm_clip": value} for value in (0, -1, math.inf, math.nan, 1e-25, 1e25)),
    {"accountant": "moments"},
]


@pytest.mark.parametrize("arguments", BAD_PRIVACY, ids=str)
def test_bad_privacy_is_refused_by_name_and_value(arguments):
    with pytest.raises(InvalidInputError) as refusal:
        Privacy(**arguments)
    [(name, value)] = arguments.items()
    assert f"{name}={value!r}" in str(refusal.value)


@settings(max_examples=40)
@given(st.lists(st.sampled_from([STEP, Event("a", 2.0), Event("a", 3.0), Event("b", 2.0)]), max_size=12))
def test_merged_events_keep_every_count(events):
    together = merged(events)
    assert len({(e.mechanism, e.noise_multiplier, e.sampling_rate) for e in together}) == len(together)
    for event in together:
        assert event.count == events.count(replace(event, count=1))
    assert sum(event.count for event in together) == len(events)


def test_events_as_dp_accounting_and_json_write_them():
    poisson = dp_accounting.PoissonSampledDpEvent(0.1, dp_accounting.GaussianDpEvent(1.5))
    assert STEP.dp_event() == dp_accounting.SelfComposedDpEvent(poisson, 1)
    assert Event("a", 2.0).dp_event() == dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(2.0), 1)
    assert STEP.to_json()["type"] == "poisson_sampled_gaussian" and Event("a", 2.0).to_json()["type"] == "gaussian"
    assert Event.from_json(json.loads(json.dumps(STEP.to_json()))) == STEP


# --- the ledger and fit ---


def fit(model, num=24, **arguments):
    images, labels = images_and_labels(num)
    return model.fit(images, labels, batch_size=8, verbose=0, **arguments)


def test_fit_charges_executed_steps_once_and_later_runs_find_them(tmp_path):
    path = tmp_path / "ledger"
    first = tiny_model(pretraining=DREAMS, ledger=Ledger(path, 24, shared=True), privacy=Privacy(1.0, 1e-5))
    fit(first, epochs=2, steps_per_epoch=3)
    counts = {event.mechanism: event.count for event in first.ledger.events}
    assert counts == {"class statistics": 1, "dream moments": 1, "clipped gradient sum": 6}
    assert first.ledger.events == first.plan.events
    first.ledger.close()

    ledger = Ledger(path, 24, shared=True)
    held = ledger.events
    assert held == first.plan.events
    again = tiny_model(pretraining=DREAMS, ledger=ledger, privacy=Privacy(1.0, 1e-5))
    weights = again.get_weights()
    with pytest.raises(BudgetExceededError, match=r"epsilon=1 "):
        fit(again)
    assert ledger.events == held
    assert all((a == b).all() for a, b in zip(weights, again.get_weights()))
    richer = tiny_model(ledger=ledger, privacy=Privacy(2.0, 1e-5))
    fit(richer, steps_per_epoch=2)
    assert 0.99 * 2 < direct_epsilon(triples(ledger.events), 1e-5, "rdp") <= 2 * 1.001
    assert richer.privacy_statement().to_json()["shared_ledger"] is True


def test_ledger_of_another_number_of_records_is_refused_by_fit(tmp_path):
    model = tiny_model(ledger=Ledger(tmp_path / "ledger", 99))
    with pytest.raises(InvalidInputError, match="99"):
        fit(model)
    assert model.ledger.events == ()


class Interrupted(Exception):
    """Ends a fit right after its checks."""


@pytest.mark.parametrize("delta, warned", [(1 / 24, 1), (0.5, 1), (1 / 25, 0)])
def test_delta_at_or_above_one_over_n_warns(delta, warned, monkeypatch):
    def stop(*arguments):
        raise Interrupted

    monkeypatch.setattr(NoPretraining, "run", stop)
    with warnings.catch_warnings(record=True) as caught, pytest.raises(Interrupted):
        warnings.simplefilter("always")
        fit(tiny_model(privacy=Privacy(1.0, delta)))
    assert sum(f"delta={delta:g} is not below 1/N" in str(warning.message) for warning in caught) == warned
