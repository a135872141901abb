"""benchmarks/audit.py: the breaks that it plants are what `fit` really runs."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import images_and_labels

from tf_dp2vae.audit.dirac import Parts
from tf_dp2vae.gradients import BookKeepingEngine
from tf_dp2vae.mechanisms import Mechanisms
from tf_dp2vae.pretraining import NoPretraining
from tf_dp2vae.records import Records
from tf_dp2vae.sampling import PoissonSource

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def audit(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    spec = importlib.util.spec_from_file_location("audit_benchmark", FOLDER / "audit.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "audit_benchmark", module)
    spec.loader.exec_module(module)
    return module


def test_black_box_audit_trains_with_the_parts_it_is_given(audit, monkeypatch):
    used = []

    def noted(part):
        return type(
            part.__name__,
            (part,),
            {"__init__": lambda self, *a, **n: used.append(part) or part.__init__(self, *a, **n)},
        )

    for name, size in {"CANARIES": 20, "BATCH": 8, "ROUNDS": 1, "STEPS": 2, "LATENT": 2, "SAMPLES": 100}.items():
        monkeypatch.setattr(audit, name, size)
    images, labels = images_and_labels(40, classes=10)
    parts = Parts(noted(Mechanisms), noted(PoissonSource), noted(BookKeepingEngine))
    verdict = audit.released_tells(Records(images, labels, 10), NoPretraining(), parts)
    assert set(used) == {Mechanisms, PoissonSource, BookKeepingEngine}
    assert verdict.canaries == 20 and np.isfinite(verdict.lower_bound)
