"""Long work shows how far it is and what ε was spent; into a log it writes little, and nothing where nothing is asked."""

import itertools
import re
import sys
import time

import pytest
from conftest import IMAGES, LABELS, tiny_model

from tf_dp2vae.baselines import NotPrivate
from tf_dp2vae.pretraining import Dreams
from tf_dp2vae.progress import FreeStepsBar
from tf_dp2vae.refinement import Refinement

SHORT = {"pretraining": Dreams(steps=4, sleep_steps=0), "prior": None, "refinement": Refinement(steps=3)}


def trained(capsys, verbose, **arguments):
    """A tiny model after its whole training, and the lines that it printed, without colours."""
    model = tiny_model(**{**SHORT, **arguments})
    model.fit(IMAGES, LABELS, batch_size=12, epochs=1, steps_per_epoch=2, verbose=verbose)
    return model, [re.sub(r"\x1b\[\d*m", "", line) for line in capsys.readouterr().out.splitlines() if line]


def test_pretraining_and_matching_show_their_steps_beside_the_epsilon_spent(capsys):
    model, lines = trained(capsys, "auto")
    announced = [float(line.split()[2]) for line in lines if line.startswith("[epsilon spent")]
    (dreamt,) = (line for line in lines if line.startswith("4/4"))
    (matched,) = (line for line in lines if line.startswith("3/3"))
    assert "loss: " in dreamt and "loss" not in matched
    after_dreams, in_all = (float(line.rpartition("epsilon: ")[2]) for line in (dreamt, matched))
    # Both releases behind the dreams are charged before their bar, and that of the features before the matching's.
    assert 0 < after_dreams == pytest.approx(announced[1], abs=1e-3)
    assert in_all == pytest.approx(model.ledger.epsilon(1e-5), abs=1e-3) and in_all > announced[-2]


def test_bars_are_silent_where_fit_is_and_one_line_where_it_is(capsys):
    assert trained(capsys, 0)[1] == []
    counts = [line.split()[0] for line in trained(capsys, 2)[1]]
    assert counts.count("4/4") == counts.count("3/3") == 1 and "1/4" not in counts


def test_bar_speaks_of_no_epsilon_where_none_covers_what_is_trained(capsys):
    _, lines = trained(capsys, 1, pretraining=NotPrivate(epochs=1))
    (steps,) = (line for line in lines if line.startswith("1/1"))
    assert "loss: " in steps and "epsilon" not in " ".join(lines)


@pytest.mark.parametrize("terminal, states", [(True, range(300, 600)), (False, range(3, 6))])
def test_bar_writes_into_a_log_now_and_then_only(capsys, monkeypatch, terminal, states):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", itertools.count(1e9, 0.01).__next__)
        bar = FreeStepsBar(2_000, verbose=1, epsilon=0.5)
        for done in range(1, 2_001):
            bar.update(done, loss=1.0)
    assert capsys.readouterr().out.count("/2000") in states
