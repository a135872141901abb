"""A part of `benchmarks/fuzz.py`: cases that the benchmark begins with and others, and that the fuzzer can fail."""

import sys
import tempfile
from pathlib import Path

import keras
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import fuzz
from odd_values import Trap

from tf_dp2vae.refusals import check_networks
from tf_dp2vae.validation import InvalidInputError

QUICK = {
    "npz": 25,
    "image files": 20,
    "labels and ids": 20,
    "checksums": 10,
    "ledger": 15,
    "privacy.json": 15,
    "flags": 20,
}


@pytest.fixture(scope="module")
def world():
    with tempfile.TemporaryDirectory() as folder:
        yield fuzz.World(Path(folder))


@pytest.mark.parametrize("kind", QUICK)
@pytest.mark.parametrize("seed", [0, 10**6])
def test_each_case_is_refused_in_one_line_or_used(world, kind, seed):
    counts, wrong = fuzz.fuzz(kind, QUICK[kind], seed, world)
    assert not wrong, wrong
    assert sum(counts.values()) == QUICK[kind] and counts[fuzz.REFUSED] > 0


@pytest.mark.parametrize("error", [KeyError("x"), MemoryError(), fuzz.WrongError("a pickle was opened"), SystemExit(1)])
def test_anything_but_a_refusal_counts_as_wrong(world, monkeypatch, error):
    def broken(world, chance):
        raise error

    monkeypatch.setitem(fuzz.KINDS, "npz", broken)
    counts, wrong = fuzz.fuzz("npz", 2, 0, world)
    assert counts["wrong"] == len(wrong) == 2


def test_trap_goes_off_where_a_pickle_is_opened():
    import pickle

    with pytest.raises(fuzz.WrongError):
        pickle.loads(pickle.dumps(Trap()))


@pytest.mark.parametrize("name", ["\n", "a\r\nb", "a\u2028b", "a\x0bb"])
def test_a_refusal_is_one_line_whatever_names_are_in_it(name):
    network = keras.Sequential(name=name)
    with pytest.raises(InvalidInputError, match="no functional Keras model") as refusal:
        check_networks(network, network)
    assert len(str(refusal.value).splitlines()) == 1
    assert len(str(InvalidInputError(f"{name} is refused")).splitlines()) == 1
