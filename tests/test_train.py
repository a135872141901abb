"""train.py: each flag arrives where its words say, and the release is scanned for the records it was trained on."""

import sys

import keras
import numpy as np
import pytest
from conftest import images_and_labels
from test_runs import run_train

import train
from tf_dp2vae.augmentation import Shifts
from tf_dp2vae.checkpoints import Checkpoints
from tf_dp2vae.ledger import Ledger
from tf_dp2vae.model import DP2VAE
from tf_dp2vae.pretraining import Dreams
from tf_dp2vae.priors import GaussianPrior
from tf_dp2vae.randomness import InsecureSeed
from tf_dp2vae.refinement import Refinement

FLAGS = """
--epsilon 3 --delta 1e-4 --l2-norm-clip 0.7 --trials 2 --engine reference --draws 3 --shifts 1 --insecure-seed 5
--prior-share 0.07 --prior-clip 1.1 --refine-share 0.2 --refine-steps 7 --temperature 1.2 --candidates 3
--statistics-share 0.06 --moments-share 0.33 --pretrain-steps 5 --sleep-steps 3 --pretrain-learning-rate 0.01
--physical-batch-size 12 --seed 4 --latent-dim 3 --width 3 --blocks 1 --num-classes 3
--batch-size 10 --steps 6 --rounds 2 --learning-rate 0.03 --schedule cosine --ema 0.6
"""


class Stopped(Exception):
    pass


@pytest.fixture(scope="module")
def arrived(tmp_path_factory):
    """What train.py hands to the model's constructor, to `compile` and to `fit`."""
    folder, found = tmp_path_factory.mktemp("wiring"), {}
    images, labels = images_and_labels(40)
    np.savez(folder / "data.npz", x_train=images, y_train=labels)

    class Recorder:
        def __init__(self, *networks, **arguments):
            found.update(networks=networks, **arguments)

        def compile(self, optimizer):
            found["optimizer"] = optimizer

        def fit(self, records, **arguments):
            found.update(records=records, fit=arguments)
            raise Stopped

    where = f"--data {folder / 'data.npz'} --runs {folder / 'runs'} --name run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "DP2VAE", Recorder)
        patch.setattr(sys, "argv", ["train.py", *where.split(), *FLAGS.split()])
        with pytest.raises(Stopped):
            train.main()
    return found


def test_pretraining_prior_and_refinement_are_those_of_the_flags(arrived):
    assert arrived["pretraining"] == Dreams(
        steps=5, learning_rate=0.01, sleep_steps=3, statistics_share=0.06, moments_share=0.33
    )
    assert arrived["prior"] == GaussianPrior(0.07, 1.1)
    assert arrived["refinement"] == Refinement(share=0.2, steps=7, temperature=1.2, candidates=3)
    assert arrived["augmentation"] == Shifts(1)


def test_guarantee_engine_and_randomness_are_those_of_the_flags(arrived):
    privacy = arrived["privacy"]
    assert (privacy.epsilon, privacy.delta, privacy.l2_norm_clip) == (3.0, 1e-4, 0.7)
    plain = {name: arrived[name] for name in ("draws", "engine", "physical_batch_size", "seed", "trials")}
    assert plain == {"draws": 3, "engine": "reference", "physical_batch_size": 12, "seed": 4, "trials": 2}
    assert isinstance(arrived["entropy"], InsecureSeed) and arrived["entropy"].seed == 5
    assert isinstance(arrived["ledger"], Ledger) and isinstance(arrived["checkpoints"], Checkpoints)


def test_networks_and_optimizer_are_those_of_the_flags(arrived):
    encoder, decoder = arrived["networks"]
    assert encoder.output_shape == [(None, 3), (None, 3)] and encoder.input_shape[0] == (None, 8, 8, 1)
    assert sum(isinstance(layer, keras.layers.GroupNormalization) for layer in decoder.layers) == 2
    optimizer = arrived["optimizer"]
    assert optimizer.use_ema and optimizer.ema_momentum == 0.6
    schedule = keras.optimizers.schedules.CosineDecay(0.03, 6)
    assert keras.optimizers.schedules.serialize(optimizer._learning_rate)["config"] == schedule.get_config()


def test_fit_gets_the_records_the_batch_and_the_rounds(arrived):
    fit = arrived["fit"]
    assert (fit["batch_size"], fit["epochs"], fit["steps_per_epoch"]) == (10, 2, 3)
    assert arrived["records"].num_records == 40 and arrived["records"].num_classes == 3


def test_record_that_reaches_the_release_is_found_before_there_is_one(tmp_path, monkeypatch, capsys):
    """The exported sampler carries one record's bytes: train.py knows its records, looks for them, and publishes nothing."""
    images, _ = images_and_labels(40)
    export = DP2VAE.export_sampler

    def leaking(model, folder):
        export(model, folder)
        with next((folder / "variables").glob("*.data*")).open("ab") as file:
            file.write(images[7].tobytes())

    monkeypatch.setattr(DP2VAE, "export_sampler", leaking)
    with pytest.raises(SystemExit, match="2"):
        run_train(tmp_path)
    assert "record" in capsys.readouterr().err
    assert not (tmp_path / "runs" / "run" / "release").exists()
