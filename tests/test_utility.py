"""The utility benchmark: resumable, completed without training again, and no cell by hand."""

import importlib.util
import json
import shlex
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import pytest

from tf_dp2vae.commands import parse
from tf_dp2vae.evaluation.flags import EvaluateFlags
from tf_dp2vae.flags import TrainFlags

FILE = Path(__file__).parent.parent / "benchmarks" / "utility.py"
FIGURES = {"acc_lr": 0.80001, "acc_mlp": 0.85, "acc_cnn": 0.9, "fid": 80.0, "fid_samples": 100}
REPORT = {"samples": 60_000, "classifier_epochs": 5, **{f"{n}_on_records": 0.99 for n in FIGURES}}
ONE = {"datasets": "mnist", "epsilons": "1", "methods": "dreams", "seeds": "0", "fid_samples": 100}


@pytest.fixture
def utility(tmp_path, monkeypatch):
    """The benchmark in an empty project, its commands only noted: `commands` lists them."""
    spec = importlib.util.spec_from_file_location("utility", FILE)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(__import__("sys").modules, "utility", module)
    monkeypatch.syspath_prepend(FILE.parent)
    spec.loader.exec_module(module)
    module.commands = []

    def run(command, log):
        module.commands.append(command)
        words = shlex.split(command)
        if words[0] == "train.py":
            (tmp_path / module.RUNS / words[-1] / "release").mkdir(parents=True)
            return 61.4
        folder = tmp_path / words[1] / "private" / "evaluation"
        folder.mkdir(parents=True, exist_ok=True)
        images = words[words.index("--fid-samples") + 1]
        (folder / "report.json").write_text(json.dumps({**REPORT, **FIGURES, "fid_samples": int(images)}))
        return 5.0

    monkeypatch.setattr(module, "run", run)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "RESULTS", tmp_path / "utility.json")
    return module


def main(utility, monkeypatch, **flags):
    arguments = [word for name, value in flags.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    monkeypatch.setattr("sys.argv", ["utility.py", *arguments])
    utility.commands.clear()
    utility.main()
    return [command.split()[0] for command in utility.commands]


def test_cell_is_trained_and_evaluated_once(utility, monkeypatch, capsys):
    assert main(utility, monkeypatch, **ONE) == ["train.py", "evaluate.py"]
    (row,) = utility.load()
    assert row["train_seconds"] == 61 and row["acc_lr"] == 0.8 and row["fid_samples"] == 100
    figures = ["acc_lr", "acc_mlp", "acc_cnn", "fid", "fid_samples"]
    assert list(row)[:10] == ["dataset", "epsilon", "method", "seed", *figures, "train_seconds"]
    assert main(utility, monkeypatch, **ONE) == []
    printed = capsys.readouterr().out
    assert "| dreams | end to end | 150 × 1,024 | 80.0 | 85.0 | 90.0 | 80.0 | 100 | 1 | 1.0 |" in printed
    assert "DPDM, accuracy sampler, as published" in printed
    assert (utility.RESULTS.parent / "utility.md").read_text() in printed
    pictures = [matplotlib.image.imread(utility.RESULTS.parent / f"utility_{name}.png") for name in ("cnn", "fid")]
    assert all(picture.shape[0] > 300 and picture.std() > 0.05 for picture in pictures)


def test_fid_of_too_few_images_is_measured_again_without_training(utility, monkeypatch):
    main(utility, monkeypatch, **ONE)
    assert main(utility, monkeypatch, **{**ONE, "fid_samples": 90}) == []
    assert main(utility, monkeypatch, **{**ONE, "fid_samples": 200}) == ["evaluate.py"]
    assert utility.load()[0]["fid_samples"] == 200


def test_verify_runs_a_row_again_and_judges_by_its_tolerance(utility, monkeypatch, capsys):
    main(utility, monkeypatch, **ONE)
    monkeypatch.setattr("sys.argv", ["utility.py", "--verify"])
    utility.commands.clear()
    with pytest.raises(SystemExit) as ended:
        utility.main()
    assert (
        ended.value.code == 0 and "acc_cnn: was 0.9000, is 0.9000, +0.0000 (±0.0400): agrees" in capsys.readouterr().out
    )
    assert "--name verify-mnist-dreams-eps1-seed0" in utility.commands[0] and "--fid-samples 100" in utility.commands[1]
    utility.store({**utility.load()[0], "acc_cnn": 0.85})
    with pytest.raises(SystemExit, match="not reproduced"):
        utility.main()
    assert "DIFFERS" in capsys.readouterr().out and utility.load()[0]["acc_cnn"] == 0.85


def test_row_of_a_kept_run_is_completed_without_training(utility, monkeypatch):
    old = {"dataset": "mnist", "epsilon": 1.0, "method": "dreams", "seed": 0, "acc_cnn": 0.5, "train_seconds": 110}
    old["settings"] = utility.Cell("mnist", 1.0, "dreams", 0).settings(utility.Flags())
    utility.RESULTS.write_text(json.dumps([old]))
    (utility.ROOT / utility.RUNS / "mnist-dreams-eps1-seed0" / "release").mkdir(parents=True)
    assert main(utility, monkeypatch, **ONE) == ["evaluate.py"]
    (row,) = utility.load()
    assert row["train_seconds"] == 110 and row["acc_cnn"] == 0.9 and utility.complete(row)


def test_cell_is_run_again_once_the_defaults_are_others(utility, monkeypatch):
    main(utility, monkeypatch, **ONE)
    (row,) = utility.load()
    assert (row["settings"]["batch_size"], row["settings"]["steps"]) == (1024, 150)
    utility.store({**row, "settings": {**row["settings"], "batch_size": 4096}})
    assert main(utility, monkeypatch, **ONE) == ["train.py", "evaluate.py"]
    assert utility.load() == [row] and main(utility, monkeypatch, **ONE) == []


def test_interrupted_evaluation_does_not_cost_the_training(utility, monkeypatch):
    whole = utility.run

    def interrupted(command, log):
        if command.startswith("evaluate"):
            raise KeyboardInterrupt
        return whole(command, log)

    monkeypatch.setattr(utility, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        main(utility, monkeypatch, **ONE)
    assert utility.load()[0]["train_seconds"] == 61
    monkeypatch.setattr(utility, "run", whole)
    assert main(utility, monkeypatch, **ONE) == ["evaluate.py"]


def test_half_a_run_is_trained_again(utility, monkeypatch):
    (utility.ROOT / utility.RUNS / "mnist-dreams-eps1-seed0" / "private").mkdir(parents=True)
    assert main(utility, monkeypatch, **ONE) == ["train.py", "evaluate.py"]


def test_every_cell_is_reproduced_by_lines_that_the_scripts_accept(utility):
    flags = utility.Flags(fashion=Path("fashion_mnist.npz"), public=Path("usps.npz"))
    found = list(utility.cells(flags))
    assert len(found) == len(set(found))
    first = found[: 3 * 2 * 6]
    assert {cell.epsilon for cell in first} == {1.0} and {cell.seed for cell in first} == {0, 1, 2}
    assert {cell.method for cell in first} == {
        "dreams",
        "dreams-unrefined",
        "unprotected",
        "public",
        "none",
        "statistics",
    }
    assert [(cell.epsilon, cell.seed) for cell in found if cell.method == "non-private"] == [(None, 0)] * 2
    assert {cell.epsilon for cell in found if cell.method == "statistics"} == {0.2, 1.0, 10.0}
    for cell in found:
        train = parse(TrainFlags, None, shlex.split(cell.train_command(flags, cell.name))[1:])
        evaluation = parse(EvaluateFlags, None, shlex.split(cell.evaluate_command(flags, cell.name))[1:])
        assert train.seed == cell.seed
        assert train.privacy.epsilon == cell.epsilon or train.pretrain == "not-private" and cell.epsilon is None
        assert train.runs / train.name == evaluation.run


def test_without_files_at_hand_the_lines_name_what_anyone_can_fetch(utility):
    flags = utility.Flags(methods="dreams", inception_weights=Path("inception.npz"))
    cell = next(cell for cell in utility.cells(flags) if cell.dataset == "fashion_mnist")
    train, evaluation = cell.train_command(flags, "x"), cell.evaluate_command(flags, "x")
    assert "--dataset fashion_mnist" in train and "--dataset fashion_mnist" in evaluation
    assert "--data " not in train and evaluation.endswith("inception.npz")
    with pytest.raises(SystemExit, match="usps.npz is not in shared/data"):
        utility.Cell("mnist", 1.0, "public", 0).train_command(flags, "x")
    assert not utility.Cell("mnist", 1.0, "public", 0).at_hand(flags)
    assert utility.Cell("fashion_mnist", 1.0, "public", 0).at_hand(flags)
    assert utility.Cell("mnist", 1.0, "public", 0).at_hand(replace(flags, public=Path("usps.npz")))


def test_mean_and_deviation_are_over_seeds(utility, tmp_path):
    rows = [
        {"dataset": "mnist", "epsilon": 1.0, "method": "none", "seed": seed, **FIGURES, "acc_cnn": accuracy}
        for seed, accuracy in enumerate((0.8, 0.9))
    ]
    ceiling = {"dataset": "mnist", "epsilon": None, "method": "non-private", "seed": 0, **FIGURES}
    assert "mnist, 0" not in utility.write_page([*rows, ceiling], [], tmp_path)
    amount = {**rows[0], "method": "unprotected-5"}
    page = utility.write_page([*rows, ceiling, amount], [], tmp_path)
    assert "| none | end to end | – | 80.0 ± 0.0 | 85.0 ± 0.0 | 85.0 ± 7.1 |" in page
    assert "| non-private | no guarantee | – | 80.0 |" in page and "| mnist, 0 |" in page


def test_reference_on_records_is_one_training_whatever_the_seeds(utility, monkeypatch):
    main(utility, monkeypatch, **{**ONE, "seeds": "0,1"})
    page = utility.write_page(utility.load(), [], utility.RESULTS.parent)
    ours, reference = (line for line in page.splitlines() if line.startswith(("| dreams", "| real training images")))
    assert " 99.0 | 99.0 | 99.0 | – | – | 1 |" in reference and "±" not in reference
    assert "| 2 |" in ours
