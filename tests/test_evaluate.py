"""evaluate.py from end to end on a tiny run, and what it says to input that it cannot use."""

import io
import json
import shutil
import stat
import sys
from types import SimpleNamespace

import matplotlib.image
import matplotlib.pyplot as plt
import numpy as np
import pytest
import tensorflow as tf
from conftest import CLASSES, DREAMS, SHAPE, images_and_labels, tiny_model

import evaluate
from tf_dp2vae.baselines import StatisticsAlone
from tf_dp2vae.checksums import write_checksums
from tf_dp2vae.commands import one_line_errors
from tf_dp2vae.durable import DamagedFileError
from tf_dp2vae.evaluation import pictures
from tf_dp2vae.evaluation.cache import Cache
from tf_dp2vae.evaluation.classifiers import impossible
from tf_dp2vae.evaluation.fidelity import fidelity
from tf_dp2vae.evaluation.flags import EVALUATION_PARTS
from tf_dp2vae.evaluation.inception import InceptionFeatures
from tf_dp2vae.evaluation.real import RealImages, real_images
from tf_dp2vae.evaluation.release import read_release
from tf_dp2vae.evaluation.report import NOT_COVERED, PUBLISHED, Part, Report
from tf_dp2vae.figures import against_epsilon
from tf_dp2vae.pretraining import Dreams, NoPretraining, Unprotected
from tf_dp2vae.runs import RunFolder, read_config
from tf_dp2vae.validation import InvalidInputError

QUICK = ["--samples", "120", "--fid-samples", "100", "--epochs", "1"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of a tiny model, and its data."""
    root = tmp_path_factory.mktemp("evaluated")
    images, labels = images_and_labels(200)
    model = tiny_model(pretraining=DREAMS, prior=None)
    model.fit(images[:120], labels[:120], batch_size=12, epochs=1, steps_per_epoch=2, verbose=0)
    folder = RunFolder(root / "runs", "run")
    config = {"dataset": "mnist", "data": str(root / "data.npz"), "num_classes": 3}
    with folder.opened(120, None, config):
        folder.write_private(model)
        folder.write_release(model)
    np.savez(root / "data.npz", x_train=images[:120], y_train=labels[:120], x_test=images[120:], y_test=labels[120:])
    return root


@pytest.fixture
def root(made, tmp_path, monkeypatch):
    """A copy of it, and Inception features that cost nothing: brightness here and there."""
    shutil.copytree(made, tmp_path / "copy")
    weights = tmp_path / "weights.npz"
    weights.touch()

    class Cheap:
        digest = "cheap"

        def __init__(self, file):
            assert file == weights

        def __call__(self, images, title=""):
            return np.asarray(images, np.float32).reshape(len(images), -1)[:, ::8]

    monkeypatch.setattr(evaluate, "InceptionFeatures", Cheap)
    monkeypatch.setattr(evaluate, "find_weights", lambda named: named and weights)
    return tmp_path / "copy"


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, arguments)])
    evaluate.main()


def test_report_has_every_part_and_says_both_sizes(root, monkeypatch, capsys):
    run(monkeypatch, root / "runs" / "run", *QUICK, "--inception-weights", "any")
    folder = root / "runs" / "run" / "private" / "evaluation"
    report = json.loads((folder / "report.json").read_text())
    for name in ("acc_lr", "acc_mlp", "acc_cnn", "acc_cnn_on_records", "precision", "recall", "coverage"):
        assert 0 <= report[name] <= 1, name
    assert report["fid"] > 0 and report["fid_samples"] == 100 and report["fid_real"] == 100
    assert report["fid_against"] == "train" and set(report["seconds"]) == {"reading", "sampling", *EVALUATION_PARTS}
    assert report["seed"] == 0 and report["pretraining"].startswith("dreams: ")
    assert report["samples"] == 120 and report["test_images"] == 80 and report["epsilon"] <= 1
    # No better than chance by more than so few images allow.
    assert 0.2 < report["membership"]["threshold"]["auc"] < 0.8 and report["neighbours"]["records"] == 80
    assert report["not_covered"] == NOT_COVERED
    printed, markdown = capsys.readouterr().out, (folder / "report.md").read_text()
    for words in ("100 samples against 100 records", "120 samples", "80 real test images", "ε = ", "end to end"):
        assert words in printed and words in markdown
    pictures = {file.name: matplotlib.image.imread(file) for file in folder.glob("*.png")}
    assert pictures["samples_beside_records.png"].shape == (6 * 10 * 3, 10 * 10 * 3, 4)
    assert pictures["closest_pairs.png"].shape == (2 * 10 * 3, 10 * 10 * 3, 4)
    assert {"accuracy.png", "acc_cnn_against_epsilon.png", "fid_against_epsilon.png"} <= pictures.keys()


def evaluated(runs, name, way, epsilon, fid, accuracy=0.9, samples=5000, against="train", **others):
    """Writes the report of a run beside others; hands it out as a Report."""
    statement = {"end_to_end": True, "epsilon": epsilon, "delta": 1e-5, "pretraining": way.describe(), **others}
    values = {"fid": fid, "acc_cnn": accuracy, "fid_samples": samples, "fid_against": against}
    report = Report(statement, "mnist", 0, [Part("All", [], values)])
    folder = runs / name / "private" / "evaluation"
    folder.mkdir(parents=True)
    report.write(folder)
    return report


def test_pictures_against_epsilon_have_a_line_for_what_may_be_compared(tmp_path, monkeypatch):
    for index, (way, epsilon, fid) in enumerate(
        [(Dreams(), 0.2, 60.0), (Dreams(), 0.9996, 41.0), (Dreams(), 1.0, 43.0), (Dreams(), 9.99, 30.0)]
        + [(NoPretraining(), 0.2, 170.0), (NoPretraining(), 1.0, 105.0), (StatisticsAlone(), 1.0, 253.0)]
    ):
        report = evaluated(tmp_path, str(index), way, epsilon, fid)
    evaluated(tmp_path, "few", Dreams(), 1.0, 90.0, samples=1000)
    evaluated(tmp_path, "test", Dreams(), 1.0, 44.0, against="test")
    given = {"end_to_end": False, "given_encoder": {"epsilon": 1.0}}
    evaluated(tmp_path, "unprotected", Unprotected(), None, 89.0, **given)
    drawn, draw = {}, pictures.figures.against_epsilon

    def watched(points, words, file):
        drawn[file.name] = points
        draw(points, words, file)

    monkeypatch.setattr(pictures.figures, "against_epsilon", watched)
    pictures.quantities_against_epsilon(report, tmp_path / "6", tmp_path)
    lines = {
        name: sorted(value for _, value, other in drawn["fid_against_epsilon.png"] if other == name)
        for _, _, name in drawn["fid_against_epsilon.png"]
    }
    assert lines == {
        "dreams, end to end, 5000 samples against records": [30, 41, 43, 60],
        "dreams, end to end, 1000 samples against records": [90],
        "dreams, end to end, 5000 samples against test images": [44],
        "none, end to end, 5000 samples against records": [105, 170],
        "statistics, end to end, 5000 samples against records": [253],
        "unprotected, given the encoder only, 5000 samples against records": [89],
    }
    ways = {name for _, _, name in drawn["acc_cnn_against_epsilon.png"]}
    assert ways == {name.rpartition(", ")[0] for name in lines}
    assert (tmp_path / "fid_against_epsilon.png").is_file()


def test_line_against_epsilon_is_through_the_means_of_equal_epsilons(tmp_path, monkeypatch):
    figure, axis = plt.subplots()
    monkeypatch.setattr(plt, "subplots", lambda **size: (figure, axis))
    against_epsilon([(0.2, 60, "a"), (1.0, 43, "a"), (0.9996, 41, "a"), (1.0, 9, "b")], "FID", tmp_path / "a.png")
    line, marks, *_ = axis.get_lines()
    assert list(line.get_xdata()) == [0.2, 1.0] and list(line.get_ydata()) == [60, 42]
    assert list(marks.get_ydata()) == [60, 43, 41]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["a", "b"]


def test_nothing_reaches_the_release_unless_asked_for_by_name(root, monkeypatch):
    release = root / "runs" / "run" / "release"
    before = sorted(path.name for path in release.iterdir())
    parts = ["--parts", "neighbours"]
    run(monkeypatch, root / "runs" / "run", *QUICK, *parts)
    assert sorted(path.name for path in release.iterdir()) == before
    run(monkeypatch, root / "runs" / "run", *QUICK, *parts, "--release-uncovered-numbers")
    assert sorted(path.name for path in release.iterdir()) == sorted([*before, PUBLISHED])
    published = json.loads((release / PUBLISHED).read_text())
    assert published["not_covered"] == NOT_COVERED and "seconds" not in published
    assert "not-covered-by-epsilon" in PUBLISHED


def test_without_weights_the_rest_still_comes_and_says_what_is_missing(root, monkeypatch, capsys):
    run(monkeypatch, root / "runs" / "run", *QUICK, "--parts", "fidelity,neighbours")
    report = json.loads((root / "runs" / "run" / "private" / "evaluation" / "report.json").read_text())
    assert "fid" not in report and "inception_weights OUT.npz" in report["fidelity_missing"]
    assert report["neighbours"]["samples"] == 20 and "no Inception weights" in capsys.readouterr().out


@pytest.mark.parametrize("num", [5, 6])
def test_too_few_images_for_fid_cost_that_part_alone(num, tmp_path):
    class Flat:
        digest = "flat"

        def __call__(self, images, title=""):
            return np.asarray(images, np.float32).reshape(len(images), -1)[:, ::8]

    images, labels = images_and_labels(num)
    real = RealImages("few", (images, labels), None, CLASSES)
    part = fidelity(np.zeros((8, *SHAPE), np.float32), real, "train", Flat(), Cache(tmp_path))
    few = f"8 samples and {num} real images: 6 are needed of each"
    assert part.values.get("fidelity_missing") == (few if num < 6 else None)


def test_too_few_records_for_a_classifier_cost_that_part_alone():
    images = RealImages("few", images_and_labels(5), images_and_labels(8), CLASSES)
    assert "5 records are too few" in impossible(images)


def test_labels_of_images_are_left_aside_where_samples_have_none(root):
    release = SimpleNamespace(image_shape=SHAPE, num_classes=0)
    real = real_images(root / "runs" / "run", release, data=root / "data.npz", num_classes=3)
    assert "no labels" in real.without_labels
    assert not real.train[1].any() and not real.test[1].any()


@pytest.mark.parametrize("written_by", ["numpy.save", "evaluate.pictures.samples_beside_records"])
def test_disk_that_takes_nothing_is_one_line(root, monkeypatch, capsys, written_by):
    def full(*arguments, **named):
        raise OSError(28, "No space left on device")

    (root / "runs" / ".cache").mkdir(mode=0o700)
    monkeypatch.setattr(written_by, full)
    refused(root, monkeypatch, capsys, "No space left", "--inception-weights", "any", "--parts", "fidelity")


def test_terminal_of_another_encoding_is_written_to_all_the_same(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    one_line_errors(lambda: print("ε = 1", flush=True))()
    assert raw.getvalue() == b"? = 1\n"


def test_reference_set_of_fid_may_be_the_test_images(root, monkeypatch, capsys):
    arguments = [root / "runs" / "run", *QUICK, "--inception-weights", "any", "--parts", "fidelity"]
    for against, words in (
        ("train", "100 samples against 100 records"),
        ("test", "100 samples against 80 test images"),
    ):
        run(monkeypatch, *arguments, "--fid-against", against)
        assert words in capsys.readouterr().out
    cached = list((root / "runs" / ".cache").glob("features-*.npy"))
    assert sorted(len(np.load(file)) for file in cached) == [80, 100]
    before = {file: file.stat().st_mtime_ns for file in cached}
    shutil.copytree(root / "runs" / "run", root / "runs" / "other")
    run(monkeypatch, root / "runs" / "other", *arguments[1:], "--fid-against", "test")
    assert {file: file.stat().st_mtime_ns for file in (root / "runs" / ".cache").glob("features-*.npy")} == before


def test_without_test_images_only_what_needs_them_is_missing(root, monkeypatch):
    with np.load(root / "data.npz") as data:
        np.savez(root / "train.npz", x_train=data["x_train"], y_train=data["y_train"])
    weights = ["--inception-weights", "any"]
    run(monkeypatch, root / "runs" / "run", *QUICK, "--data", root / "train.npz", "--num-classes", "3", *weights)
    report = json.loads((root / "runs" / "run" / "private" / "evaluation" / "report.json").read_text())
    assert report["fid"] > 0
    for name in ("usefulness", "membership inference", "nearest neighbours"):
        assert "no test set" in report[f"{name}_missing"]


def test_equal_seeds_give_equal_numbers_and_the_cache_is_closed(root, monkeypatch):
    arguments = [root / "runs" / "run", *QUICK, "--inception-weights", "any", "--parts", "fidelity,usefulness"]
    reports = []
    for _ in range(2):
        run(monkeypatch, *arguments)
        reports.append(json.loads((root / "runs" / "run" / "private" / "evaluation" / "report.json").read_text()))
        reports[-1].pop("seconds")
    assert reports[0] == reports[1]
    cache = root / "runs" / ".cache"
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert sorted(file.suffix for file in cache.iterdir()) == [".json", ".npy"]


def no_run(run):
    shutil.rmtree(run / "release")


def no_statement(run):
    (run / "release" / "privacy.json").unlink()


def half_a_statement(run):
    (run / "release" / "privacy.json").write_text('{"epsilon": 1')


def stating(**changes):
    def damage(run):
        file = run / "release" / "privacy.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
        write_checksums(run / "release")  # as who changes a statement would

    return damage


def cut_sampler(run):
    file = run / "release" / "sampler" / "saved_model.pb"
    file.write_bytes(file.read_bytes()[:100])


def cut_weights(run):
    file = next((run / "release" / "sampler" / "variables").glob("*.data-*"))
    file.write_bytes(file.read_bytes()[:50])


class Foreign(tf.Module):
    """A sampler of three classes that somebody else made."""

    bright, label, classes = 0.5, 0, 3

    @tf.function(input_signature=[])
    def num_classes(self):
        return tf.constant(self.classes)

    @tf.function(input_signature=[])
    def image_shape(self):
        return tf.constant(SHAPE)

    @tf.function(input_signature=[tf.TensorSpec([], tf.int32)] * 2)
    def sample_records(self, num, seed):
        return self.bright * tf.ones([num, *SHAPE]), self.label + tf.zeros([num], tf.int32)


def foreign(**changes):
    def put(run):
        sampler = Foreign()
        for name, value in changes.items():
            setattr(sampler, name, value)
        shutil.rmtree(run / "release" / "sampler")
        tf.saved_model.save(sampler, str(run / "release" / "sampler"))
        (run / "release" / "SHA256SUMS").unlink()
        write_checksums(run / "release")

    return put


def damaged_flags(run):
    (run / "private" / "config.json").write_text("{")


@pytest.mark.parametrize(
    "damage, words",
    [
        (no_run, "is no run"),
        (no_statement, "no privacy.json"),
        (half_a_statement, "privacy.json is damaged"),
        (stating(end_to_end=False), "without a guarantee"),
        (cut_sampler, "tampered"),
        (cut_weights, "tampered"),
        (foreign(bright=7.0), "does not sample labels and images in [0, 1]"),
        (foreign(label=50), "does not sample labels and images in [0, 1]"),
        (foreign(label=-1), "does not sample labels and images in [0, 1]"),
        (foreign(sample_records=None), "no sampler of ours"),
        (foreign(classes=4), "has a label set of 3, the release one of 4"),
        (stating(epsilon="small"), "numbers below 0 or none at all"),
        (stating(epsilon_rdp="small"), "numbers below 0 or none at all"),
        (stating(given_encoder={"epsilon_pld": "small"}), "numbers below 0 or none at all"),
        (stating(delta=None), "numbers below 0 or none at all"),
        (stating(delta="1e-5"), "numbers below 0 or none at all"),
        (stating(accountant="moments"), "accountant='moments'"),
        (damaged_flags, "config.json is damaged"),
    ],
)
def test_damaged_run_gets_one_line_and_writes_nothing(root, monkeypatch, capsys, damage, words):
    damage(root / "runs" / "run")
    refused(root, monkeypatch, capsys, words)


def test_a_run_that_is_not_named_is_asked_for_by_the_name_that_help_gives(monkeypatch, capsys):
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "evaluate.py: the following arguments are required: run (--help lists all flags)"


def refused(root, monkeypatch, capsys, words, *flags):
    before = sorted(root.rglob("*"))
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, root / "runs" / "run", *QUICK, *flags)
    lines = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and len(lines) == 1 and words in lines[0]
    assert sorted(root.rglob("*")) == before


def test_data_that_do_not_fit_the_release(root, monkeypatch, capsys):
    images, labels = images_and_labels(20)
    np.savez(root / "small.npz", x_train=images[:, :4, :4], y_train=labels)
    np.savez(root / "unlabelled.npz", x_train=images)
    np.savez(root / "two.npz", x_train=images, y_train=labels % 2)
    refused(root, monkeypatch, capsys, "4×4×1", "--data", root / "small.npz")
    refused(root, monkeypatch, capsys, "no labels", "--data", root / "unlabelled.npz")
    refused(root, monkeypatch, capsys, "label set of 2", "--data", root / "two.npz", "--num-classes", "2")
    refused(root, monkeypatch, capsys, "label set of 4", "--data", root / "data.npz", "--num-classes", "4")
    refused(root, monkeypatch, capsys, "give one of them", "--data", root / "data.npz", "--dataset", "mnist")
    refused(root, monkeypatch, capsys, "--num-classes 47: of a file's records", "--num-classes", "47")
    refused(root, monkeypatch, capsys, "parts='speed'", "--parts", "speed")
    refused(root, monkeypatch, capsys, "samples=5", "--samples", "5")
    monkeypatch.setattr(evaluate, "InceptionFeatures", InceptionFeatures)
    monkeypatch.setattr(evaluate, "find_weights", lambda named: named)
    refused(root, monkeypatch, capsys, "nowhere.npz do not exist", "--inception-weights", "nowhere.npz")


def test_release_alone_is_not_compared_with_data_that_nobody_named(root, monkeypatch, capsys):
    shutil.rmtree(root / "runs" / "run" / "private")
    refused(root, monkeypatch, capsys, "--dataset or --data")


def test_few_test_images_cost_one_part_of_the_report_and_not_the_others(root, monkeypatch):
    images, labels = images_and_labels(130)
    few = {"x_train": images[:120], "y_train": labels[:120], "x_test": images[120:], "y_test": labels[120:]}
    np.savez(root / "few.npz", **few)
    data = ["--data", root / "few.npz", "--num-classes", "3"]
    run(monkeypatch, root / "runs" / "run", *QUICK, "--parts", "membership,neighbours", *data)
    folder = root / "runs" / "run" / "private" / "evaluation"
    report = json.loads((folder / "report.json").read_text())
    assert "membership" not in report and report["neighbours"]["records"] == 10
    assert "6 records against 6 others are too few" in (folder / "report.md").read_text()


def test_interrupted_evaluation_says_so_in_one_line_and_keeps_the_report_before_it(root, monkeypatch, capsys):
    folder = root / "runs" / "run" / "private" / "evaluation"
    folder.mkdir()
    (folder / "report.json").write_text("{}")

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "neighbours", interrupted)
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, root / "runs" / "run", *QUICK, "--parts", "neighbours")
    assert ended.value.code == 130 and capsys.readouterr().err == "\nevaluate.py: interrupted\n"
    assert [file.name for file in folder.iterdir()] == ["report.json"]
    assert not list(folder.parent.glob(".evaluation*"))


@pytest.mark.parametrize("place", [".", "run", ".."], ids=["inside the run", "beside it", "inside the release"])
def test_cache_and_report_stand_where_they_belong_wherever_the_command_is_called(root, monkeypatch, place):
    shutil.rmtree(root / "runs" / "run" / "private")
    monkeypatch.chdir(root / "runs" / {".": "run", "run": "", "..": "run/release"}[place])
    run(monkeypatch, place, *QUICK, "--parts", "usefulness", "--data", root / "data.npz", "--num-classes", "3")
    assert [path.parent for path in root.rglob(".cache")] == [root / "runs"]
    assert stat.S_IMODE((root / "runs" / "run" / "private").stat().st_mode) == 0o700


def test_release_in_a_folder_that_tensorflow_cannot_read_is_not_called_tampered_with(root):
    shutil.move(root / "runs" / "run", root / "run [1]")
    with pytest.raises(InvalidInputError, match=r"TensorFlow cannot read files there, for \[ in it"):
        read_release(root / "run [1]")


def test_release_that_may_not_be_read_is_said_to_be_so(root, monkeypatch):
    def denied(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(root), "is_file", denied)
    with pytest.raises(InvalidInputError, match=r"privacy.json cannot be read \(Permission denied\): give access"):
        read_release(root / "runs" / "run")
    with pytest.raises(DamagedFileError, match=r"config.json cannot be read \(Permission denied\): give access"):
        read_config(root / "runs" / "run" / "private")
