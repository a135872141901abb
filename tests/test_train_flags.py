"""Every bad flag and bad file of train.py: one clear line, exit code 2, nothing half-written."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import images_and_labels

import train
from tf_dp2vae.accounting import Event
from tf_dp2vae.commands import parse
from tf_dp2vae.evaluation.flags import EvaluateFlags
from tf_dp2vae.evaluation.inception import WEIGHTS_FILE
from tf_dp2vae.flags import TrainFlags
from tf_dp2vae.from_flags import make_refinement
from tf_dp2vae.ledger import Ledger
from tf_dp2vae.pretraining import Dreams
from tf_dp2vae.recipes import RECIPES, Recipe, batch_size_for
from tf_dp2vae.validation import InvalidInputError

IMAGES, LABELS = images_and_labels(40)


@pytest.fixture
def folder(tmp_path):
    """A folder with data.npz: 40 images of 8×8 in 3 classes."""
    np.savez(tmp_path / "data.npz", x_train=IMAGES, y_train=LABELS)
    return tmp_path


@pytest.fixture
def refused(folder, monkeypatch, capsys):
    """Runs train.py with the flags and hands out its one line, after looking that nothing was left behind or changed."""

    def run(*flags, data="data.npz"):
        chosen = ["--data", str(folder / data), "--num-classes", "3", "--runs", str(folder / "runs")]
        before = sorted(folder.rglob("*"))
        contents = {path: path.read_bytes() for path in before if path.is_file()}
        monkeypatch.setattr(sys, "argv", ["train.py", *chosen, "--batch-size", "8", *map(str, flags)])
        with pytest.raises(SystemExit) as ended:
            train.main()
        error = capsys.readouterr().err
        assert ended.value.code == 2
        assert error.count("\n") == 1 and error.startswith("train.py: ") and "Traceback" not in error
        assert sorted(folder.rglob("*")) == before, "a refused run leaves something behind"
        assert all(path.read_bytes() == content for path, content in contents.items())
        return error

    return run


BAD_FLAGS = [
    *(("--epsilon", value) for value in ("0", "-1", "nan", "inf", "1001", "much", "")),
    *(("--delta", value) for value in ("0", "1", "-0.5", "nan", "tiny")),
    *(("--l2-norm-clip", value) for value in ("0", "-1", "nan", "inf", "x")),
    ("--accountant", "moments"),
    ("--audit-canaries", "99999999999"),
    *(("--num-classes", value) for value in ("0", "-3", "2.5", "ten")),
    ("--pretrain", "wishes"),
    ("--prior", "uniform"),
    ("--engine", "warp"),
    ("--invalid-records", "drop"),
    *(
        (flag, value)
        for flag in ("--learning-rate", "--pretrain-learning-rate")
        for value in ("0", "-1", "nan", "inf", "x")
    ),
    *((flag, value) for flag in ("--schedule", "--family") for value in ("none", "0")),
    *(("--ema", value) for value in ("1", "-0.1", "nan", "x")),
    *(
        (flag, value)
        for flag in ("--statistics-share", "--moments-share", "--prior-share")
        for value in ("0", "1", "-0.1", "nan", "x")
    ),
    *(("--refine-share", value) for value in ("1", "-0.1", "nan", "x")),
    *(("--checkpoint-seconds", value) for value in ("-1", "nan", "inf", "x")),
    *((flag, value) for flag in ("--prior-clip", "--temperature") for value in ("0", "-1", "inf", "x")),
    *(
        (flag, value)
        for flag in (
            "--batch-size",
            "--steps",
            "--rounds",
            "--draws",
            "--latent-dim",
            "--width",
            "--pretrain-steps",
            "--pretrain-epochs",
            "--physical-batch-size",
            "--max-per-unit",
            "--trials",
            "--candidates",
        )
        for value in ("0", "-1", "1.5", "many")
    ),
    *(
        (flag, value)
        for flag in (
            "--sleep-steps",
            "--seed",
            "--insecure-seed",
            "--shifts",
            "--refine-steps",
            "--audit-canaries",
            "--blocks",
        )
        for value in ("-1", "0.5", "x")
    ),
    ("--blocks", "33"),
    ("--no-such-flag", "3"),
]


@pytest.mark.parametrize("flag, value", BAD_FLAGS)
def test_bad_value_of_a_flag(refused, flag, value):
    error = refused(flag, value)
    assert flag.strip("-").replace("-", "_") in error.replace("-", "_")
    assert value in error


@pytest.mark.parametrize(
    "flags, words",
    [
        (("--steps", "10", "--rounds", "3"), "steps=10"),
        (("--batch-size", "41"), "batch_size=41"),
        (("--batch-size", "41"), "40 records"),
        (("--statistics-share", "0.6"), "must sum to less than 1"),
        (("--pretrain", "public"), "--public-data"),
        (("--public-dataset", "mnist"), "--pretrain public"),
        (("--pretrain", "public", "--public-data", "nowhere.npz"), "nowhere.npz"),
        (("--trials", "3", "--ledger", "ledger"), "exclude each other"),
        (("--unit", "patient"), "no array patient"),
        (("--max-per-unit", "3"), "without --unit"),
        (("--dataset", "kmnist"), "give one of them"),
        (("--dataset", "mnist"), "give one of them"),
        (("--pretrain", "public", "--public-data", "a.npz", "--public-dataset", "b"), "give one of them"),
        (("--shifts", "8"), "choose less than 8"),
        (("--name", "a/b"), "'a/b'"),
        (("--name", ".."), "'..'"),
        (("--name", "n" * 300), "n" * 20),
        (("--ledger", "n" * 300), "name another path"),
        (("--seed", str(10**30)), "seed"),
        (("--insecure-seed", "1", "--ledger", "shared.jsonl"), "drop --ledger"),
        (("--insecure-seed", "7", "--seed", "7"), "choose another --insecure-seed"),
        (("--rounds",), "--rounds: expected one argument"),
        (("--steps",), "--steps: expected one argument"),
        (("--blocks", "--rounds", "3"), "--blocks: expected one argument"),
        (("stray",), "stray"),
    ],
)
def test_flags_that_do_not_fit_together(refused, flags, words):
    assert words in refused(*flags)


@pytest.mark.parametrize(
    "flags, ignored",
    [
        ("--pretrain none --pretrain-steps 50 --sleep-steps 500 --statistics-share .3", ["--statistics-share 0.3"]),
        ("--pretrain none --pretrain-steps 50 --sleep-steps 500", ["--pretrain-steps 50", "--sleep-steps 500"]),
        ("--pretrain none --pretrain-learning-rate 0.1", ["--pretrain-learning-rate 0.1"]),
        ("--pretrain unprotected --pretrain-steps 50", ["--pretrain-steps 50 (for dreams, public)"]),
        ("--pretrain unprotected --trials 3", ["--trials 3"]),
        ("--pretrain-epochs 99", ["--pretrain-epochs 99 (for unprotected, not-private)", "--pretrain dreams"]),
        ("--prior normal --prior-share .3", ["--prior-share 0.3", "--prior gaussian"]),
        ("--prior normal --prior-clip 2", ["--prior-clip 2.0"]),
        ("--refine-share 0 --candidates 50 --refine-steps 3", ["--candidates 50", "--refine-steps 3"]),
        ("--pretrain not-private --epsilon 0.1 --steps 900", ["--epsilon 0.1", "--steps 900"]),
        ("--pretrain not-private --shifts 2 --draws 4 --prior normal", ["--shifts 2", "--draws 4", "--prior normal"]),
        ("--pretrain statistics --steps 3000 --latent-dim 99", ["--steps 3000", "--latent-dim 99"]),
        ("--pretrain statistics --family strokes --candidates 3", ["--family strokes", "--candidates 3"]),
    ],
)
def test_flag_that_would_change_nothing(flags, ignored):
    with pytest.raises(InvalidInputError) as refusal:
        parse(TrainFlags, "", flags.split())
    assert all(words in str(refusal.value) for words in ignored), refusal.value


@pytest.mark.parametrize(
    "flags",
    [
        "--pretrain not-private --pretrain-epochs 30 --latent-dim 48 --blocks 2 --candidates 1 --epsilon 1",
        "--pretrain statistics --epsilon 0.2 --statistics-share 0.3 --trials 2",
        "--pretrain unprotected --pretrain-epochs 5 --steps 300 --refine-share 0",
        "--pretrain none --pretrain-steps 2000 --pretrain-learning-rate 2e-3",
        "--family surfaces --refine-share 0 --prior normal",
    ],
)
@pytest.mark.parametrize("num", [60_000, 40])
def test_flag_that_counts_or_stands_at_its_default_passes_and_so_does_what_is_filled_in(flags, num):
    resolved = parse(TrainFlags, "", flags.split()).resolved(num)
    assert resolved == resolved.resolved(num) and parse(TrainFlags, "", [], resolved) == resolved


@pytest.mark.parametrize(
    "flags",
    ["--unit patient --max-per-unit 2", "--num-classes 3", "--invalid-records null", "--unit a --num-classes 3"],
)
def test_what_is_said_of_a_files_records_needs_the_file(flags):
    with pytest.raises(InvalidInputError, match="--data") as refusal:
        parse(TrainFlags, "", flags.split())
    assert all(flag in str(refusal.value) for flag in flags.split() if flag in ("--unit", "--num-classes"))


@pytest.mark.parametrize(
    "records, public", [("a", "a:3.0.1"), ("a/digits", "a"), ("a/b:1.0.0", "hub:a/c"), ("a:1.*.*", "a")]
)
def test_versions_and_variants_of_a_data_set_are_the_same_data(records, public):
    with pytest.raises(InvalidInputError, match="are the records"):
        TrainFlags(dataset=records, pretrain="public", public_dataset=public)
    TrainFlags(dataset=records, pretrain="public", public_dataset="b:3.0.1")


def arrays(**changes):
    return {
        name: array for name, array in {"x_train": IMAGES, "y_train": LABELS, **changes}.items() if array is not None
    }


BAD_FILES = {
    "wrong keys": (arrays(x_train=None, x=IMAGES), "x_train"),
    "wrong dtype": (arrays(x_train=IMAGES.astype(np.int64)), "int64"),
    "NaN": (arrays(x_train=np.full(IMAGES.shape, np.nan)), "NaN"),
    "no images": (arrays(x_train=IMAGES[:0], y_train=LABELS[:0]), "empty"),
    "no pixels": (arrays(x_train=np.zeros((40, 0, 0))), "0×0"),
    "labels that do not match": (arrays(y_train=LABELS[:-1]), "40 images"),
    "labels as floats": (arrays(y_train=LABELS.astype(float)), "float64"),
    "labels outside the set": (arrays(y_train=LABELS + 1), "0 to 2"),
    "fewer than a batch": (arrays(x_train=IMAGES[:7], y_train=LABELS[:7]), "7 records"),
    "odd sizes": (arrays(x_train=IMAGES[:, :7, :7]), "7×7×1"),
    "two channels": (arrays(x_train=np.repeat(IMAGES, 2, 3)), "8×8×2"),
    "vectors": (arrays(x_train=IMAGES.reshape(40, -1)), "(40, 64)"),
}


@pytest.mark.parametrize("content, words", BAD_FILES.values(), ids=BAD_FILES)
def test_bad_contents_of_the_data_file(refused, folder, content, words):
    np.savez(folder / "bad.npz", **content)
    assert words in refused(data="bad.npz")


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04"], ids=["empty", "text", "half a zip"])
def test_file_that_is_no_archive(refused, folder, content):
    (folder / "bad.npz").write_bytes(content)
    assert "bad.npz" in refused(data="bad.npz")


def test_invalid_records_are_counted_where_they_are_to_count_as_null(refused, folder):
    labels = np.where(np.arange(40) == 7, 3, LABELS)
    np.savez(folder / "bad.npz", **arrays(y_train=labels))
    assert "--invalid-records null" in refused(data="bad.npz")
    with pytest.warns(UserWarning, match="1 of 40 records"):
        assert "40 records" in refused("--invalid-records", "null", "--batch-size", "41", data="bad.npz")


def test_missing_file(refused):
    assert "nowhere.npz" in refused(data="nowhere.npz")


@pytest.mark.parametrize("flag", ["--data", "--public-data"])
def test_folder_in_place_of_a_file(refused, folder, flag):
    assert folder.name in refused(*(["--pretrain", "public"] if flag == "--public-data" else []), flag, folder)


def test_public_data_of_another_kind(refused, folder):
    np.savez(folder / "public.npz", x_train=np.repeat(IMAGES, 3, 3), y_train=LABELS)
    assert "3 channels" in refused("--pretrain", "public", "--public-data", folder / "public.npz")
    np.savez(folder / "public.npz", x_train=IMAGES, y_train=LABELS + 1)
    outside = refused("--pretrain", "public", "--public-data", folder / "public.npz")
    assert "outside the declared label set" in outside and "--invalid-records null" in outside
    np.savez(folder / "public.npz", x_train=np.repeat(IMAGES, 3, 3), y_train=LABELS + 1)
    counted = "--pretrain", "public", "--public-data", folder / "public.npz", "--invalid-records", "null"
    with pytest.warns(UserWarning, match="13 of 40 records"):
        assert "3 channels" in refused(*counted)
    np.savez(folder / "public.npz", x_train=IMAGES)
    assert "0 classes" in refused("--pretrain", "public", "--public-data", folder / "public.npz")


def test_runs_folder_that_cannot_be_one(refused, folder):
    (folder / "file").write_text("")
    assert "file" in refused("--runs", folder / "file")
    assert "file" in refused("--runs", folder / "file" / "deeper")
    (folder / "taken" / "old").mkdir(parents=True)
    assert "old" in refused("--runs", folder / "taken", "--name", "old")


def test_ledgers_that_cannot_be_used(refused, folder):
    assert "missing" in refused("--ledger", folder / "missing" / "ledger")
    assert folder.name in refused("--ledger", folder)
    (folder / "text").write_text("no ledger\n")
    assert "text" in refused("--ledger", folder / "text")
    ledger = Ledger(folder / "ledger", 40)
    assert "in use" in refused("--ledger", folder / "ledger")
    ledger.close()
    other = Ledger(folder / "other", 99)
    other.charge(Event("class statistics", 100.0))
    other.close()
    assert "99 records, not 40" in refused("--ledger", folder / "other")


def test_new_shared_ledger_is_not_left_by_a_refused_run(refused, folder):
    assert "batch_size=41" in refused("--ledger", folder / "ledger", "--batch-size", "41")


def test_public_data_are_not_the_records(refused, folder):
    (folder / "copy.npz").symlink_to(folder / "data.npz")
    for name in ("data.npz", "copy.npz"):
        assert "are the records" in refused("--pretrain", "public", "--public-data", folder / name)
    with pytest.raises(InvalidInputError, match="are the records"):
        TrainFlags(pretrain="public", public_dataset="mnist")
    TrainFlags(pretrain="public", public_dataset="mnist", data=folder / "data.npz")


def test_several_bad_flags_name_at_least_the_first(refused):
    assert "epsilon" in refused("--epsilon", "0", "--delta", "7", "--steps", "0")


@pytest.mark.parametrize(
    "flags, words", [(["--epsilon", "-1"], "epsilon=-1.0"), (["--data", "nowhere.npz"], "nowhere.npz")]
)
def test_as_a_program(tmp_path, flags, words):
    script = Path(train.__file__)
    ended = subprocess.run([sys.executable, script, *flags], cwd=tmp_path, capture_output=True, text=True)
    lines = [line for line in ended.stderr.splitlines() if line]
    assert ended.returncode == 2 and len(lines) == 1 and words in lines[0]
    assert ended.stdout == "" and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "command, said",
    [
        ("train.py --epsilon 0 >&-", True),
        ("train.py --epsilon 0 2>&-", False),
        ("train.py --epsilon 0 2>&1 | true", False),
        ("KERAS_BACKEND=jax train.py --epsilon 0", True),
        ("-m tf_dp2vae.audit --no-such-flag", True),
    ],
    ids=["output closed", "errors closed", "errors into a closed pipe", "another backend", "a module"],
)
def test_odd_surroundings_end_in_one_line_at_most(command, said):
    """`set -o pipefail` gives the program's own exit code."""
    name = "tf_dp2vae.audit" if "audit" in command else "train.py"
    command = re.sub(r"train.py|-m", rf"{sys.executable} \g<0>", command)
    shell = ["bash", "-c", f"set -o pipefail; {command}"]
    ended = subprocess.run(shell, cwd=Path(train.__file__).parent, capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stdout == "", ended
    assert re.fullmatch(rf"{name}: .*\n" if said else "", ended.stderr)


TALKING = "import time; from tf_dp2vae.commands import one_line_errors; one_line_errors({})()"
ENDLESS = "lambda: [print(n) for n in range(10**6)]"
INTERRUPTED = "lambda: (print(5), time.sleep(0.5), exec('raise KeyboardInterrupt(6)'))"
EXITS = "lambda: (print(5), time.sleep(0.5), exec('raise SystemExit(1)'))"
WORDS = "lambda: exec('raise BrokenPipeError(6)')"


@pytest.mark.parametrize(
    "main, pipe, code, said",
    [
        (ENDLESS, "| head -n 1", 141, ""),
        (INTERRUPTED, "| true", 130, "\n-c: 6\n"),
        (EXITS, "| true", 141, ""),
        (WORDS, "| true", 141, "-c: 6\n"),
        (WORDS, "2>&1 | true", 141, ""),
    ],
    ids=["had seen enough", "text is pending", "text is pending at an exit", "words", "nobody hears them"],
)
def test_closed_pipe_neither_shows_a_traceback_nor_takes_the_place_of_how_it_ended(main, pipe, code, said):
    command = ["bash", "-c", f'set -o pipefail; {sys.executable} -c "{TALKING.format(main)}" {pipe}']
    buffered = {**os.environ, "PYTHONUNBUFFERED": ""}
    ended = subprocess.run(command, cwd=Path(train.__file__).parent, env=buffered, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (code, said)


INTERRUPTED_IMPORT = """
import os, runpy, signal, sys

signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background inherits that it is ignored

class Interruption:
    def find_spec(self, name, path=None, target=None):
        if name == "tensorflow":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interruption())
sys.argv = ["train.py", "--epsilon", "0"]
runpy.run_path("train.py", run_name="__main__")
"""


def test_ctrl_c_before_a_command_has_begun_is_no_traceback():
    ended = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_IMPORT], cwd=Path(train.__file__).parent, capture_output=True, text=True
    )
    assert (ended.returncode, ended.stderr) == (-signal.SIGINT, "")


def test_help_lists_every_flag_with_its_meaning(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        train.main()
    text = capsys.readouterr().out
    assert ended.value.code == 0
    words = " ".join(text.split())
    meanings = dict(re.findall(r"^ {6}(\w+): (.+)$", TrainFlags.__doc__, re.M))
    for name in (field.name for field in dataclasses.fields(TrainFlags) if field.name != "privacy"):
        assert f"--{name.replace('_', '-')} " in words
        assert meanings[name] in words


@pytest.mark.parametrize("flags, head", [(TrainFlags, "Training"), (EvaluateFlags, "Evaluation")])
def test_help_is_in_words_and_says_of_a_value_that_it_is_needed(flags, head, capsys):
    with pytest.raises(SystemExit):
        parse(flags, "What it does.", ["--help"])
    text = capsys.readouterr().out
    assert f"\n{head}:\n" in text and flags.__name__ not in text and "None" not in text
    assert "--data Path " in text and not re.search(r"--\S+ \[(int|str|float|Path)\]", text)
    assert "--no" not in text


def test_switch_is_turned_on_with_or_without_a_value():
    for given, switched in (([], False), (["--release-uncovered-numbers"], True)):
        assert parse(EvaluateFlags, "", ["runs/x", *given]).release_uncovered_numbers is switched
    assert not parse(EvaluateFlags, "", ["runs/x", "--release-uncovered-numbers", "false"]).release_uncovered_numbers


def test_help_names_the_file_of_weights(capsys):
    with pytest.raises(SystemExit):
        parse(EvaluateFlags, "", ["--help"])
    assert f"shared/data/{WEIGHTS_FILE} " in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    "flags, recipe",
    [
        ("", RECIPES["strokes"]),
        ("--dataset emnist/letters", RECIPES["strokes"]),
        ("--dataset mnist:3.0.1", RECIPES["strokes"]),
        ("--dataset huggingface:mnist/a:1.*.*", RECIPES["strokes"]),
        ("--dataset fashion_mnist", RECIPES["surfaces"]),
        ("--data digits.npz", RECIPES["surfaces"]),
        ("--data digits.npz --family strokes", RECIPES["strokes"]),
        ("--family surfaces --blocks 2 --schedule cosine", Recipe(2, 1e-3, "cosine", 300, 4096, 1.25)),
        ("--blocks 0 --learning-rate 0.5 --steps 30 --batch-size 2", Recipe(0, 0.5, "cosine", 30, 2, 1.0)),
        ("--family surfaces --temperature 1", dataclasses.replace(RECIPES["surfaces"], temperature=1.0)),
    ],
)
def test_family_sets_what_is_not_given(flags, recipe):
    assert parse(TrainFlags, "", flags.split()).recipe == recipe


@pytest.mark.parametrize(
    "flags, temperature",
    [("--family surfaces", 1.25), ("--family strokes", 1.0), ("--family surfaces --temperature 1.5", 1.5)],
)
def test_samples_are_refined_at_the_temperature_of_their_family(flags, temperature):
    refinement = make_refinement(parse(TrainFlags, "", flags.split()), Dreams())
    assert refinement is not None and refinement.temperature == temperature


@pytest.mark.parametrize(
    "family, given, batch, steps",
    [
        ("strokes", [], 20, 150),
        ("surfaces", [], 20, 300),
        ("strokes", ["--batch-size", "7", "--steps", "6"], 7, 6),
    ],
)
def test_what_is_left_open_is_filled_in_and_written_down(folder, monkeypatch, family, given, batch, steps):
    """What `fit` and the optimizer get, and config.json, from which a killed run goes on under any later defaults."""
    asked, config = {}, {}

    def fit(model, records, batch_size, epochs, steps_per_epoch, callbacks):
        asked.update(
            batch_size=batch_size, steps=epochs * steps_per_epoch, rate=model.optimizer.get_config()["learning_rate"]
        )
        config.update(json.loads((folder / "runs" / "run" / "private" / "config.json").read_text()))
        raise InvalidInputError("seen enough")

    monkeypatch.setattr(train.DP2VAE, "fit", fit)
    flags = ["--data", str(folder / "data.npz"), "--num-classes", "3", "--runs", str(folder / "runs"), "--name", "run"]
    monkeypatch.setattr(sys, "argv", ["train.py", *flags, "--family", family, *given])
    with pytest.raises(SystemExit):
        train.main()
    assert (asked["batch_size"], asked["steps"]) == (batch, steps)
    if family == "strokes":
        assert asked["rate"]["config"]["decay_steps"] == steps
    filled_in = {**vars(RECIPES[family]), "steps": steps, "batch_size": batch}
    assert {name: config[name] for name in filled_in} == filled_in


def test_data_set_that_is_not_named_is_written_down_unless_a_file_is():
    assert TrainFlags().resolved(60_000).dataset == "mnist"
    assert TrainFlags(data=Path("data.npz")).resolved(60_000).dataset is None


def test_a_batch_that_is_not_asked_for_fits_the_records():
    assert [batch_size_for(num) for num in (60_000, 8_192, 8_191, 100, 1)] == [4_096, 4_096, 4_095, 50, 1]
    batches = [TrainFlags(family="strokes").resolved(num).batch_size for num in (60_000, 2_048, 2_047, 1)]
    assert batches == [1_024, 1_024, 1_023, 1]
    assert TrainFlags(family="strokes", batch_size=4_096).resolved(60_000).batch_size == 4_096
