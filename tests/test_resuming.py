"""A training that is killed at any moment goes on: same end, nothing paid twice, nothing answered twice."""

import json
import math
import shlex
import shutil
import sys
from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import CLASSES, SHAPE, images_and_labels, some_records, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

import train
from tf_dp2vae import DP2VAE, DPAdam, Dreams, GaussianPrior, Unprotected, durable, planning, runs
from tf_dp2vae.accounting import BudgetExceededError, Event, Privacy
from tf_dp2vae.answers import AnsweringMechanisms, Answers, _moments
from tf_dp2vae.augmentation import Shifts
from tf_dp2vae.checkpoints import Checkpoints, Phase
from tf_dp2vae.durable import DamagedFileError, locked
from tf_dp2vae.ledger import Ledger
from tf_dp2vae.mechanisms import Mechanisms
from tf_dp2vae.moments import Moments
from tf_dp2vae.networks import build_decoder, build_encoder
from tf_dp2vae.private_steps import PrivateSteps
from tf_dp2vae.randomness import InsecureSeed, SystemEntropy
from tf_dp2vae.refinement import Refinement
from tf_dp2vae.training import Training
from tf_dp2vae.validation import InvalidInputError

RECORDS = some_records(48)
PRIVACY = Privacy(2.0, 1e-5)
ROUNDS, STEPS = 2, 3


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it, and whatever was in memory is thrown away."""


class Disk:
    """Every durable write, counted; kills before, in the middle of, or after one of them."""

    def __init__(self, monkeypatch, kill_at=None, moment="before"):
        self.writes, self._kill_at, self._moment = 0, kill_at, moment
        self._inner = durable.os.fsync
        monkeypatch.setattr(durable.os, "fsync", self._fsync)

    def _fsync(self, descriptor):
        self.writes += 1
        if self.writes == self._kill_at and self._moment == "before":
            raise Killed
        self._inner(descriptor)
        if self.writes == self._kill_at:
            raise Killed


def make_model(folder, ledger, seconds=0.0, pretraining=None, seed=3):
    folder.mkdir(exist_ok=True)
    model = DP2VAE(
        build_encoder(SHAPE, 2, CLASSES, width=1, seed=seed),
        build_decoder(SHAPE, 2, CLASSES, width=2, seed=seed + 1),
        privacy=PRIVACY,
        pretraining=pretraining or Dreams(steps=3, sleep_steps=2),
        refinement=Refinement(steps=3, candidates=2),
        physical_batch_size=16,
        seed=seed,
        ledger=ledger,
        checkpoints=Checkpoints(folder, seconds),
    )
    model.compile(DPAdam(learning_rate=0.01, use_ema=True, ema_momentum=0.5))
    return model


def fit(model):
    return model.fit(RECORDS, batch_size=12, epochs=ROUNDS, steps_per_epoch=STEPS, verbose=0)


def one_process(folder, **arguments):
    """What one process does: opens the ledger, trains, closes it."""
    ledger = Ledger(folder.parent / "ledger", RECORDS.num_records)
    try:
        model = make_model(folder, ledger, **arguments)
        model.losses = fit(model).history["loss"]
        return model
    finally:
        ledger.close()


class Given:
    """Remembers every answer that was used, by charge, in order."""

    def __init__(self, monkeypatch):
        self.answers = {}
        keep, recall = Answers.keep, Answers.recall

        def kept(answers, charge, answer):
            keep(answers, charge, answer)
            self._note(charge, answer)

        def recalled(answers, charge):
            answer = recall(answers, charge)
            if answer is not None:
                self._note(charge, answer)
            return answer

        monkeypatch.setattr(Answers, "keep", kept)
        monkeypatch.setattr(Answers, "recall", recalled)

    def _note(self, charge, answer):
        answer = {name: np.array(array) for name, array in answer.items()}
        before = self.answers.setdefault(charge.hash, answer)
        assert all(np.array_equal(before[name], answer[name]) for name in answer), "two answers to one charge"


def killed_until_it_ends(tmp_path, monkeypatch, kills, **arguments):
    """Processes that are killed at the given (write, moment), then one that ends."""
    for kill_at, moment in kills:
        with monkeypatch.context() as patch:
            Disk(patch, kill_at, moment)
            try:
                return one_process(tmp_path / "run", **arguments)
            except Killed:
                keras.backend.clear_session()
    return one_process(tmp_path / "run", **arguments)


def weights(model):
    networks = (model.encoder, model.decoder, model.latent_prior, model.judge)
    return [weight for network in networks for weight in network.get_weights()]


def play(monkeypatch, tmp_path, answers, **arguments):
    """An unbroken run that is given these answers in place of its mechanisms' own, and stores nothing."""
    answers = list(answers)

    def moments(self, records, event, *_, **__):
        self.charge(event)
        return _moments(answers.pop(0))

    def step(self, iterator):
        answer = answers.pop(0)
        return self._model.step_logs(math.nan) if answer is None else self._again(answer)

    with monkeypatch.context() as patch:
        patch.setattr(Mechanisms, "class_statistics", moments)
        patch.setattr(Mechanisms, "latent_moments", moments)
        patch.setattr(Mechanisms, "feature_means", moments)
        patch.setattr(PrivateSteps, "__call__", step)
        model = make_model(tmp_path / "unbroken", Ledger(), **arguments)
        model.checkpoints = Checkpoints()
        fit(model)
    assert not answers
    return model


def test_a_second_fit_without_checkpoints_pays_for_itself(tmp_path):
    ledger = Ledger(tmp_path / "ledger", RECORDS.num_records)
    model = make_model(tmp_path / "run", ledger)
    fit(model)
    first = model.ledger.events
    model.checkpoints, model.privacy = Checkpoints(), replace(PRIVACY, epsilon=2 * PRIVACY.epsilon)
    fit(model)
    ledger.close()
    counts = [sum(event.count for event in events) for events in (first, model.ledger.events)]
    assert counts[1] == 2 * counts[0]
    assert PRIVACY.epsilon < model.privacy_statement().epsilon() <= 2 * PRIVACY.epsilon


KILLS = [(14, "after"), (22, "before"), (23, "after")]
"""In pre-training on dreams, then in the private phase."""
KILLED_RUNS = {
    "checkpoints at every step": (0.0, Dreams(steps=3, sleep_steps=2), KILLS),
    "answers since the last phase": (1e6, Dreams(steps=3, sleep_steps=2), KILLS),
    "published": (0.0, Unprotected(epochs=3), [(7, "after"), (12, "before"), (14, "after")]),
}


@pytest.mark.parametrize("seconds, pretraining, kills", KILLED_RUNS.values(), ids=KILLED_RUNS)
def test_killed_and_resumed_run_ends_where_an_unbroken_one_with_its_answers_does(
    tmp_path, monkeypatch, seconds, pretraining, kills
):
    options = {"seconds": seconds, "pretraining": pretraining}
    with monkeypatch.context() as patch:
        used = Given(patch)
        resumed = killed_until_it_ends(tmp_path, monkeypatch, kills, **options)
    charges = Ledger(tmp_path / "ledger", 48).charges
    assert len(charges) == len(resumed.plan.releases) + ROUNDS * STEPS
    lost = [charge.hash not in used.answers for charge in charges]
    assert sum(lost) <= len(kills)
    unbroken = play(monkeypatch, tmp_path, [used.answers.get(charge.hash) for charge in charges], **options)
    for found, expected in zip(weights(resumed), weights(unbroken), strict=True):
        np.testing.assert_array_equal(found, expected)
    for found, expected in zip(resumed.optimizer.variables, unbroken.optimizer.variables, strict=True):
        np.testing.assert_array_equal(found.numpy(), expected.numpy())
    np.testing.assert_allclose(resumed.losses, unbroken.history.history["loss"], rtol=1e-6)


# --- what cannot go on ---


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The folder of a run that was killed in its private phase, with answers since the last checkpoint."""
    folder = tmp_path_factory.mktemp("killed")
    with pytest.MonkeyPatch.context() as patch:
        Disk(patch, 24, "after")
        with pytest.raises(Killed):
            one_process(folder / "run", seconds=1e6)
    assert list((folder / "run" / "answers").glob("*.answer"))
    return folder


@pytest.fixture
def copy(killed, tmp_path):
    shutil.copytree(killed, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The same model, to begin with in other folders."""
    return make_model(tmp_path_factory.mktemp("model") / "run", Ledger())


def begin(copy, model, records=RECORDS, batch_size=12, rounds=ROUNDS):
    """What `fit` does first."""
    model.ledger = Ledger(copy / "ledger", records.num_records)
    try:
        model.checkpoints = Checkpoints(copy / "run")
        return Training(model, records, batch_size, rounds, STEPS, verbose=0).begin()
    finally:
        model.ledger.close()


def refusal(copy, model, **arguments):
    """The one line with which the run refuses to go on, its ledger as it was."""
    before = (copy / "ledger").read_bytes()
    with pytest.raises(InvalidInputError) as refused:
        begin(copy, model, **arguments)
    assert (copy / "ledger").read_bytes() == before and "\n" not in str(refused.value)
    return str(refused.value)


def test_killed_run_finds_its_plan_and_its_weights_again(copy, model):
    plan = begin(copy, model)
    shares = {**Dreams().shares, **GaussianPrior().shares, **Refinement().shares}
    assert plan == planning.plan(PRIVACY, 12 / 48, ROUNDS * STEPS, shares)
    assert not np.allclose(model.latent_prior.frequencies.numpy(), 1 / CLASSES), (
        "set in pre-training, from the checkpoint"
    )


def test_checkpoint_on_the_way_back_keeps_the_answers_that_are_still_to_be_given_again(copy, model):
    begin(copy, model)
    before, answers = answers_of(copy), model.checkpoints.answers
    assert model.checkpoints.progress.phase is Phase.PRIVATE and len(before) >= 2
    given_again = answers._file(answers._charges[answers.position])
    answers.position += 1
    model.checkpoints.save()
    assert answers_of(copy) == [file for file in before if file != given_again]


OTHERS = {
    "records": ({"records": some_records(48, seed=9)}, {}, "records was"),
    "a record less": ({"records": some_records(47)}, {}, "48 records, not 47"),
    "batch": ({"batch_size": 16}, {}, "batch_size was 12, is now 16"),
    "rounds": ({"rounds": 3}, {}, "rounds was 2, is now 3"),
    "seed": ({}, {"seed": 4}, "seed was 3, is now 4"),
    "refinement": ({}, {"refinement": Refinement(steps=4, candidates=2)}, "refinement steps was 3, is now 4"),
    "draws": ({}, {"draws": 2}, "draws was 1, is now 2"),
    "augmentation": ({}, {"augmentation": Shifts(1)}, "augmentation was None, is now {'pixels': 1}"),
    "epsilon": ({}, {"privacy": Privacy(3.0, 1e-5)}, "epsilon was 2.0, is now 3.0"),
    "clip": ({}, {"privacy": Privacy(2.0, 1e-5, l2_norm_clip=0.5)}, "l2_norm_clip was 1.0, is now 0.5"),
    "prior": ({}, {"prior": GaussianPrior(share=0.2)}, "prior share was 0.05, is now 0.2"),
    "dreams": ({}, {"pretraining": Dreams(steps=4, sleep_steps=2)}, "pretraining steps was 3, is now 4"),
    "optimizer": ({}, {"optimizer": DPAdam(learning_rate=0.02)}, "optimizer learning_rate was"),
    "decoder": ({}, {"decoder": build_decoder(SHAPE, 2, CLASSES, width=3)}, "decoder was"),
}


@pytest.mark.parametrize("arguments, changes, words", OTHERS.values(), ids=OTHERS)
def test_other_terms_are_refused_with_the_difference(copy, model, monkeypatch, arguments, changes, words):
    for name, value in changes.items():
        monkeypatch.setattr(model, name, value)
    assert words in refusal(copy, model, **arguments)


def answers_of(copy):
    return sorted((copy / "run" / "answers").glob("*.answer"))


def damage_answer(copy):
    content = answers_of(copy)[0].read_bytes()
    answers_of(copy)[0].write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])


def exchange_answers(copy):
    first, second = answers_of(copy)[:2]
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


def cut_ledger(copy):
    lines = (copy / "ledger").read_bytes().splitlines(keepends=True)
    (copy / "ledger").write_bytes(b"".join(lines[:-3]))


def other_ledger(copy):
    (copy / "ledger").unlink()
    ledger = Ledger(copy / "ledger", 48)
    for _ in range(12):
        ledger.charge(Event("class statistics", 7.0))
    ledger.close()


def damage_checkpoint(copy):
    [file] = (copy / "run" / "checkpoints").iterdir()
    file.write_bytes(file.read_bytes()[:-1])


BROKEN = {
    "answer missing": (lambda copy: answers_of(copy)[0].unlink(), "missing"),
    "answer damaged": (damage_answer, "not the answer that the ledger names"),
    "answers exchanged": (exchange_answers, "not the answer that the ledger names"),
    "ledger cut": (cut_ledger, "answers no charge"),
    "ledger exchanged": (other_ledger, "ledger is not the one"),
    "ledger missing": (lambda copy: (copy / "ledger").write_bytes(b""), "ledger is not the one"),
    "checkpoint damaged": (damage_checkpoint, "damaged"),
    "checkpoint missing": (lambda copy: shutil.rmtree(copy / "run" / "checkpoints"), "no checkpoint"),
}


@pytest.mark.parametrize("damage, words", BROKEN.values(), ids=BROKEN)
def test_files_that_do_not_belong_together_are_refused_with_the_way_out(copy, model, damage, words):
    damage(copy)
    line = refusal(copy, model)
    assert words in line and "--ledger" in line


def test_rest_of_a_plan_that_others_have_left_no_room_for_is_refused(copy, model):
    ledger = Ledger(copy / "ledger", 48)
    ledger.run = "another"
    ledger.charge(Event("class statistics", 3.0))
    ledger.close()
    with pytest.raises(BudgetExceededError, match="epsilon=2 is the budget"):
        begin(copy, model)


# --- the command line ---

FLAGS = """
--steps 4 --rounds 2 --batch-size 8 --latent-dim 2 --width 2 --physical-batch-size 16 --num-classes 3
--pretrain-steps 2 --sleep-steps 1 --refine-steps 2 --checkpoint-seconds 1000
"""


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs train.py with the flags; hands out exit code and standard error, and keeps what was printed."""
    images, labels = images_and_labels(40)
    np.savez(tmp_path / "data.npz", x_train=images, y_train=labels)

    def run(*flags):
        keras.backend.clear_session()
        new = [
            "--data",
            str(tmp_path / "data.npz"),
            "--runs",
            str(tmp_path / "runs"),
            "--name",
            "one",
            *shlex.split(FLAGS),
        ]
        monkeypatch.setattr(sys, "argv", ["train.py", *([] if "--resume" in flags else new), *map(str, flags)])
        code = 0
        try:
            train.main()
        except SystemExit as ended:
            code = ended.code
        run.printed, error = capsys.readouterr()
        return code, error

    run.folder = tmp_path / "runs" / "one"
    run.data = tmp_path / "data.npz"
    return run


def start_and_kill(command, monkeypatch, write=20):
    with monkeypatch.context() as patch:
        Disk(patch, write, "after")
        with pytest.raises(Killed):
            command()


def test_resume_goes_on_with_the_run_s_own_flags_from_any_folder(command, monkeypatch, tmp_path):
    start_and_kill(command, monkeypatch)
    assert not (command.folder / "release").exists()
    monkeypatch.chdir(tmp_path / "runs")
    assert command("--resume", "one") == (0, "")
    stated = json.loads((command.folder / "release" / "privacy.json").read_text())
    assert {event["mechanism"]: event["count"] for event in stated["events"]} == {
        "class statistics": 1,
        "dream moments": 1,
        "clipped gradient sum": 4,
        "latent moments": 1,
        "feature means": 1,
    }
    assert len((command.folder / "private" / "history.csv").read_text().splitlines()) == 1 + 4
    assert not (command.folder / "private" / "answers").exists()
    code, line = command("--resume", command.folder)
    assert code == 2 and "finished" in line and line.count("\n") == 1


def test_resume_refuses_in_one_line_what_it_cannot_do(command, monkeypatch, tmp_path):
    start_and_kill(command, monkeypatch)

    def refused(*flags):
        code, line = command(*flags)
        assert code == 2 and line.count("\n") == 1 and line.startswith("train.py: "), line
        return line

    assert "no such run" in refused("--resume", tmp_path / "nowhere")
    changed = refused("--resume", command.folder, "--epsilon", "3")
    assert "epsilon was 1.0, is now 3.0" in changed and "privacy was" not in changed
    assert "--resume" in refused()  # the same name again
    with locked(command.folder / "private"):
        assert "in use" in refused("--resume", command.folder)
    images, labels = images_and_labels(40, seed=7)
    content = command.data.read_bytes()
    np.savez(command.data, x_train=images, y_train=labels)
    assert "records was" in refused("--resume", command.folder)
    command.data.write_bytes(content)
    config = command.folder / "private" / "config.json"
    text = config.read_text()
    for damaged in (text[:50], "[]", text.replace('"steps": 4', '"steps": "many"'), text.replace("width", "wide")):
        config.write_text(damaged)
        assert "config.json" in refused("--resume", command.folder)
    config.write_text(text.replace('"learning_rate": 0.001', '"learning_rate": 0.002'))
    assert "learning_rate was" in refused("--resume", command.folder)
    config.write_text(text)
    ledger = command.folder / "private" / "ledger.jsonl"
    ledger.rename(tmp_path / "elsewhere")
    assert "ledger.jsonl is missing, so nothing says what was spent" in refused("--resume", command.folder)
    assert not ledger.exists()
    config.unlink()
    assert "missing" in refused("--resume", command.folder)


def interrupted(*arguments, **named):
    raise KeyboardInterrupt


def test_run_says_where_it_is_and_when_interrupted_how_to_go_on(command, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Refinement, "run", interrupted)
        code, error = command()
    way_on = f"python train.py --resume {command.folder}"
    folder, how = command.printed.splitlines()[:2]
    assert folder.endswith(f" {command.folder}") and how.endswith(f" {way_on}")
    assert (code, error) == (130, f"\ntrain.py: interrupted: go on with {way_on}\n")
    assert command(*shlex.split(way_on)[2:])[0] == 0


def test_run_whose_output_nobody_reads_any_more_says_how_to_go_on(command, monkeypatch):
    def closed(*arguments, **named):
        raise BrokenPipeError(32, "Broken pipe")

    with monkeypatch.context() as patch:
        patch.setattr(Refinement, "run", closed)
        patch.setattr("tf_dp2vae.commands.os.dup2", lambda *descriptors: None)
        code, error = command()
    way_on = f"python train.py --resume {command.folder}"
    assert (code, error) == (141, f"train.py: nobody reads its output any more: go on with {way_on}\n")
    assert command("--resume", command.folder)[0] == 0


def test_run_with_an_insecure_seed_is_not_resumed_and_says_so_from_the_start(command, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Refinement, "run", interrupted)
        code, error = command("--insecure-seed", "5")
    again = f"remove {command.folder} and start again, for a run with --insecure-seed is not resumed"
    assert command.printed.splitlines()[1].endswith(again) and "--resume" not in command.printed
    assert (code, error) == (130, f"\ntrain.py: interrupted: {again}\n")
    before = {file: file.read_bytes() for file in command.folder.rglob("*") if file.is_file()}
    code, line = command("--resume", command.folder)
    assert code == 2 and "insecure_seed=5" in line and line.endswith(f"{again}.\n") and line.count("\n") == 1
    assert before == {file: file.read_bytes() for file in command.folder.rglob("*") if file.is_file()}


def test_checkpoints_of_an_insecure_seed_are_not_gone_on_from(tmp_path, monkeypatch):
    def begun(folder, entropy):
        ledger = Ledger(folder / "ledger.jsonl", 48)
        model = tiny_model(ledger=ledger, checkpoints=Checkpoints(folder, seconds=0), entropy=entropy)
        try:
            fit(model)
        finally:
            ledger.close()

    for name, entropy in (("seeded", InsecureSeed(5)), ("system", SystemEntropy())):
        (tmp_path / name).mkdir()
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(PrivateSteps, "__call__", interrupted)
            begun(tmp_path / name, entropy)
    with pytest.raises(InvalidInputError, match="insecure seed"):
        begun(tmp_path / "seeded", InsecureSeed(5))
    begun(tmp_path / "system", SystemEntropy())


def test_run_that_is_interrupted_before_it_began_is_to_be_started_again(command, monkeypatch):
    monkeypatch.setattr(train.DP2VAE, "compile", interrupted)
    code, error = command()
    assert code == 130 and error.endswith("; start again\n") and not command.folder.exists()


def test_run_that_is_interrupted_at_its_very_end_is_finished(command, monkeypatch):
    monkeypatch.setattr(runs, "sync_folder", interrupted)
    code, error = command()
    assert code == 130 and error.endswith(f"its release is {command.folder / 'release'}\n")
    assert (command.folder / "release" / "privacy.json").is_file()


@pytest.mark.parametrize("write", [4, 12, 26])
def test_full_disk_is_one_line_and_can_be_resumed(command, monkeypatch, write):
    inner, writes = durable.os.fsync, []

    def full(descriptor):
        writes.append(descriptor)
        if len(writes) >= write:
            raise OSError(28, "No space left on device")
        inner(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(durable.os, "fsync", full)
        code, line = command()
    assert code == 2 and line.count("\n") == 1 and "No space left" in line
    assert line.endswith(f"--resume {command.folder}.\n" if command.folder.exists() else "start again.\n")
    if command.folder.exists():
        assert command("--resume", command.folder)[0] == 0
        ledger = Ledger(command.folder / "private" / "ledger.jsonl", 40)
        assert sum(event.count for event in ledger.events) == 4 + 4 and 0.99 < ledger.epsilon(1e-5) <= 1
        ledger.close()
    else:
        assert write == 4, "only a run that was not charged yet may leave nothing"


def test_file_that_cannot_be_placed_leaves_the_old_one(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    file = tmp_path / "file"
    durable.write_atomically(file, b"old")
    monkeypatch.setattr(durable.os, "fsync", full)
    with pytest.raises(durable.StorageError, match="No space left"):
        durable.write_atomically(file, b"new")
    assert file.read_bytes() == b"old" and list(tmp_path.iterdir()) == [file]


# --- any sequence of fits, kills, resumes and refusals ---


class Toy:
    """A run whose mechanisms are counters: real ledger, answers, checkpoints and steps, no networks."""

    run_eagerly, jit_compile = True, False

    def __init__(self, folder, ledger, target, tag, witness):
        self.weights, self.witness = keras.Variable(np.zeros(1, np.float32)), witness
        self.checkpoints = Checkpoints(folder, 0.0)
        self.plan = self.checkpoints.begin(
            [self.weights],
            ledger,
            Privacy(target, 1e-5),
            lambda: {"records": tag},
            lambda: planning.plan(Privacy(target, 1e-5), 0.25, 3, {"class statistics": 0.3}, ledger.events),
        )

    def count_step(self):
        pass

    def step_logs(self, loss):
        return {"loss": loss}

    def update(self, noised_sum):
        self.weights.assign_add(noised_sum()[0])

    def compute(self, _):
        self.witness.append("made")
        return {"loss": tf.constant(1.0), "answer": {"0": tf.constant(np.random.random(1), tf.float32)}}

    def run(self):
        if self.checkpoints.progress.phase is Phase.PRETRAINING:
            mechanisms = AnsweringMechanisms(self.checkpoints._ledger, None, self.checkpoints.answers)
            mechanisms._once(self.plan.releases[0], lambda: self.release(mechanisms))
            self.checkpoints.enter(Phase.PRIVATE)
        steps = PrivateSteps(self, self.compute)
        for _ in range(self.plan.steps):
            steps(None)

    def release(self, mechanisms):
        mechanisms.charge(self.plan.releases[0])
        return Moments(None, np.random.random(1), np.ones(1), 1.0, 1.0, 1.0)


KILL_AT = st.one_of(
    st.just(9), st.integers(1, 60)
)  # 9 lies between the release's stored answer and the next checkpoint
ACTIONS = st.tuples(st.integers(0, 1), st.sampled_from(["a", "a", "a", "a", "a", "b"]), KILL_AT, st.booleans())


@settings(max_examples=25)
@given(st.lists(ACTIONS, min_size=1, max_size=6))
def test_any_sequence_of_fits_kills_resumes_and_refusals_stays_within_the_budget(tmp_path_factory, actions):
    """Two runs share a ledger; each action starts or resumes one, on records `a` or others, to be killed at a write."""
    folder, target, witness = tmp_path_factory.mktemp("any"), 1.5, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(durable.os, "fsync", lambda descriptor: None)
        used = Given(patch)
        for number, tag, kill_at, before in actions:
            (folder / str(number)).mkdir(exist_ok=True)
            ledger = Ledger(folder / "ledger", 48, shared=True)
            with pytest.MonkeyPatch.context() as killing:
                Disk(killing, kill_at, "before" if before else "after")
                try:
                    Toy(folder / str(number), ledger, target, tag, witness).run()
                except DamagedFileError:
                    raise  # no kill may leave files that do not belong together
                except (Killed, InvalidInputError):
                    pass
            ledger.close()
            ledger = Ledger(folder / "ledger", 48, shared=True)
            assert ledger.epsilon(1e-5) <= target
            steps = [charge for charge in ledger.charges if charge.event.mechanism == "clipped gradient sum"]
            assert len(witness) <= len(steps)
            assert set(used.answers) <= {charge.hash for charge in ledger.charges}
            ledger.close()
