"""The ledger survives crashes, knows when it was tampered with, and refuses strangers."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tf_dp2vae import accounting
from tf_dp2vae.accounting import Event
from tf_dp2vae.durable import DamagedFileError, StorageError, sha256
from tf_dp2vae.ledger import Ledger
from tf_dp2vae.validation import InvalidInputError

STEP = Event("clipped gradient sum", 1.5, 0.1)
RELEASE = Event("class statistics", 7.0)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger"


def charged(path, *events, num_records=50):
    """The ledger's lines after these charges."""
    ledger = Ledger(path, num_records)
    for event in events:
        ledger.charge(event)
    ledger.close()
    return path.read_bytes().splitlines(keepends=True)


def events_of(path):
    ledger = Ledger(path, 50)
    try:
        return [charge.event for charge in ledger.charges]
    finally:
        ledger.close()


def test_charge_is_on_disk_when_it_returns(path, monkeypatch):
    sizes, sync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (sizes.append(os.fstat(descriptor).st_size), sync(descriptor)))
    ledger = Ledger(path, 50)
    ledger.charge(STEP)
    assert sizes[-1] == path.stat().st_size
    entry = json.loads(path.read_text().splitlines()[-1])
    assert {name: entry[name] for name in STEP.to_json()} == STEP.to_json()


def test_killed_process_leaves_its_charges(path):
    code = (
        "import os, sys; from tf_dp2vae.accounting import Event; from tf_dp2vae.ledger import Ledger\n"
        "ledger = Ledger(sys.argv[1], 50); ledger.charge(Event('a', 2.0)); ledger.charge(Event('a', 2.0)); os._exit(9)"
    )
    root = Path(accounting.__file__).parents[1]
    ended = subprocess.run([sys.executable, "-c", code, str(path)], cwd=root, capture_output=True)
    assert ended.returncode == 9, ended.stderr.decode()
    assert Ledger(path, 50).events == (Event("a", 2.0, 1.0, 2),)


def test_reopened_ledger_goes_on_where_it_was(path):
    for expected in (1, 2, 3):
        ledger = Ledger(path, 50, shared=True)
        ledger.charge(STEP)
        assert [event.count for event in ledger.events] == [expected]
        assert ledger.epsilon(1e-5) == accounting.epsilon([replace(STEP, count=expected)], 1e-5)
        ledger.close()


def test_second_holder_and_other_data_set_are_refused(path):
    ledger = Ledger(path, 50)
    with pytest.raises(InvalidInputError, match=r"in use by another run, or by this program: .* or call close\(\) on"):
        Ledger(path, 50)
    ledger.charge(STEP)
    ledger.close()
    with pytest.raises(InvalidInputError, match="50 records, not 60"):
        Ledger(path, 60)
    Ledger(path, 50)


def test_ledger_lets_go_at_the_end_of_its_block_and_takes_no_charge_after_it(path):
    for _ in range(2):
        with Ledger(path, 50) as ledger:
            ledger.charge(STEP)
    with pytest.raises(InvalidInputError, match=r"was closed: set model.ledger = Ledger\(path\)"):
        ledger.charge(STEP)
    assert [charge.event for charge in ledger.charges] == events_of(path) == [STEP, STEP]
    with pytest.raises(ZeroDivisionError), Ledger(path, 50):
        1 / 0  # noqa: B018
    Ledger(path, 50).close()


def test_ledger_that_is_removed_between_opening_and_locking_is_refused(path, monkeypatch):
    def lock_too_late(file, operation):
        path.unlink()

    monkeypatch.setattr("tf_dp2vae.ledger.fcntl.flock", lock_too_late)
    with pytest.raises(InvalidInputError, match="was removed while it was opened"):
        Ledger(path, 50)


def replaced(path):
    copy = path.with_suffix(".copy")
    copy.write_bytes(path.read_bytes())
    copy.replace(path)


def longer(path):
    path.write_bytes(path.read_bytes() + b"\n")


@pytest.mark.parametrize("touch", [replaced, longer, Path.unlink])
def test_file_that_others_touch_takes_no_charge_and_loses_none(path, touch):
    """What they wrote would be cut off, or what is written here stand in a file that nobody opens again."""
    with Ledger(path, 50) as ledger:
        ledger.charge(STEP)
        touch(path)
        there = path.read_bytes() if path.exists() else None
        with pytest.raises(InvalidInputError, match="changed, replaced or removed by something else"):
            ledger.charge(STEP)
        assert len(ledger.charges) == 1 and (path.read_bytes() if path.exists() else None) == there


@pytest.mark.parametrize("in_file", [True, False])
def test_forked_process_charges_nothing_to_the_ledger_of_its_parent(path, in_file):
    ledger = Ledger(path if in_file else None, 50, shared=True)
    ledger.charge(STEP)
    child = os.fork()
    if not child:
        try:
            ledger.charge(STEP)
            os._exit(0)
        except InvalidInputError as error:
            os._exit(3 if "was forked" in str(error) else 4)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    ledger.charge(STEP)
    ledger.close()
    assert len(ledger.charges) == 2 and (not in_file or events_of(path) == [STEP, STEP])


@pytest.mark.parametrize("place", ["folder", "missing/ledger"])
def test_impossible_places_are_refused(tmp_path, place):
    (tmp_path / "folder").mkdir()
    with pytest.raises(InvalidInputError, match=place):
        Ledger(tmp_path / place, 50)


# --- damage ---


def forged(lines, place, **changes):
    """The lines with one entry changed and its own hash made to fit."""
    entry = {**json.loads(lines[place]), **changes}
    entry.pop("hash")
    before = json.loads(lines[place - 1])["hash"] if place else ""
    mended = {**entry, "hash": sha256(before.encode() + json.dumps(entry).encode())}
    return [*lines[:place], json.dumps(mended).encode() + b"\n", *lines[place + 1 :]]


DAMAGED = {
    "a line is missing": lambda lines: [*lines[:2], *lines[3:]],
    "the header is missing": lambda lines: lines[1:],
    "lines are exchanged": lambda lines: [lines[0], lines[2], lines[1], *lines[3:]],
    "a line comes twice": lambda lines: [*lines, lines[-1]],
    "a charge is edited": lambda lines: [*lines[:2], lines[2].replace(b"1.5", b"9.5"), *lines[3:]],
    "the last charge is edited": lambda lines: [*lines[:-1], lines[-1].replace(b"1.5", b"9.5")],
    "a charge and its hash are edited": lambda lines: forged(lines, 2, noise_multiplier=9.5),
    "white space": lambda lines: [lines[0], lines[1].replace(b": ", b":  ", 1), *lines[2:]],
    "text at the end": lambda lines: [*lines, b"text"],
    "text after the last brace": lambda lines: [*lines[:-1], lines[-1][:-1] + b"x"],
    "text": lambda lines: [b"not a ledger\n"],
    "text without an end": lambda lines: [b"not a ledger"],
    "bytes": lambda lines: [b"\x00\xff"],
    "a list": lambda lines: [b"[1, 2]\n"],
    "depth": lambda lines: [b"[" * 100_000 + b"\n"],
    "negative count": lambda lines: forged(lines, 4, count=-3),
    "zero noise": lambda lines: forged(lines, 4, noise_multiplier=0.0),
    "noise is NaN": lambda lines: forged(lines, 4, noise_multiplier=math.nan),
    "noise is text": lambda lines: forged(lines, 4, noise_multiplier="much"),
    "rate above one": lambda lines: forged(lines, 4, sampling_rate=1.5),
    "other adjacency": lambda lines: forged(lines[:1], 0, adjacency="zero-out"),
    "other version": lambda lines: forged(lines[:1], 0, ledger=1),
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_damaged_ledger_is_refused_in_one_line_and_left_alone(path, damage):
    lines = charged(path, RELEASE, STEP, STEP, STEP)
    path.write_bytes(b"".join(damage(lines)))
    content = path.read_bytes()
    with pytest.raises(InvalidInputError, match="ledger") as refusal:
        Ledger(path, 50)
    assert "\n" not in str(refusal.value) and "--ledger" in str(refusal.value)
    assert path.read_bytes() == content


@settings(max_examples=150)
@given(st.data())
def test_no_flipped_bit_goes_unnoticed(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("flips") / "ledger"
    charged(path, RELEASE, STEP, STEP)
    content = bytearray(path.read_bytes())
    place, bit = data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(0, 7))
    content[place] ^= 1 << bit
    path.write_bytes(bytes(content))
    with pytest.raises(InvalidInputError):
        Ledger(path, 50)


@settings(max_examples=60)
@given(st.data())
def test_crash_at_any_byte_of_a_charge_loses_no_earlier_one(tmp_path_factory, data):
    """What a crash leaves of the last line was no charge yet, unless all of it is there; a later charge counts."""
    path = tmp_path_factory.mktemp("torn") / "ledger"
    lines = charged(path, RELEASE, STEP)
    kept = data.draw(st.integers(0, len(lines[-1])))
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][:kept])
    complete = kept >= len(lines[-1]) - 1
    assert events_of(path) == [RELEASE, *([STEP] if complete else [])]
    charged(path, STEP)
    assert events_of(path) == [RELEASE, *([STEP, STEP] if complete else [STEP])]


def test_torn_header_is_no_ledger_yet(path):
    header = charged(path, STEP)[0]
    path.write_bytes(header[:30])
    charged(path, RELEASE)
    assert events_of(path) == [RELEASE]


def test_opening_alone_changes_nothing(path):
    lines = charged(path, STEP)
    torn = b"".join(lines) + lines[-1][:20]
    path.write_bytes(torn)
    Ledger(path, 50).close()
    assert path.read_bytes() == torn


def test_no_two_ledgers_share_a_chain(tmp_path):
    first, second = charged(tmp_path / "a", STEP), charged(tmp_path / "b", STEP)
    assert first[1] != second[1]


def test_failed_write_is_refused_and_nothing_more_is_charged(path, monkeypatch):
    ledger = Ledger(path, 50)
    ledger.charge(STEP)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match=r"No space left.*make room"):
            ledger.charge(STEP)
    assert len(ledger.charges) == 1
    with pytest.raises(InvalidInputError, match="before"):
        ledger.charge(STEP)
    ledger.close()
    assert events_of(path) == [STEP, STEP], "what may have reached the disk counts"


def test_answers_are_noted_beside_their_charges(path):
    ledger = Ledger(path, 50)
    ledger.charge(STEP)
    ledger.answered(ledger.charges[-1], "abc")
    ledger.close()
    again = Ledger(path, 50)
    assert again.answers == {again.charges[0].hash: "abc"} and again.events == (STEP,)
    assert again.head() == ledger.head() and again.head(1) != again.head(2) and again.head(99) is None


def test_damage_is_its_own_kind_of_refusal(path):
    path.write_text("text\n")
    with pytest.raises(DamagedFileError):
        Ledger(path)


def test_path_that_no_file_can_have_is_refused(tmp_path):
    with pytest.raises(InvalidInputError, match="name another path"):
        Ledger(tmp_path / ("n" * 300), 50)
