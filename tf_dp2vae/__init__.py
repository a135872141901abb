"""Differentially private pre-trained variational autoencoders for Keras.

Reference: Jiang, Zhang, Karami, Chen, Shao, Yu 2022, "DP²-VAE: Differentially Private Pre-trained Variational
Autoencoders" (arXiv 2208.03409).
"""

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tf_dp2vae import datasets as datasets
    from tf_dp2vae.accounting import BudgetExceededError as BudgetExceededError
    from tf_dp2vae.accounting import Privacy as Privacy
    from tf_dp2vae.augmentation import Shifts as Shifts
    from tf_dp2vae.baselines import NotPrivate as NotPrivate
    from tf_dp2vae.baselines import StatisticsAlone as StatisticsAlone
    from tf_dp2vae.baselines import build_linear_decoder as build_linear_decoder
    from tf_dp2vae.checkpoints import Checkpoints as Checkpoints
    from tf_dp2vae.ledger import Ledger as Ledger
    from tf_dp2vae.model import DP2VAE as DP2VAE
    from tf_dp2vae.networks import build_decoder as build_decoder
    from tf_dp2vae.networks import build_encoder as build_encoder
    from tf_dp2vae.optimizers import DPSGD as DPSGD
    from tf_dp2vae.optimizers import DPAdam as DPAdam
    from tf_dp2vae.pretraining import Dreams as Dreams
    from tf_dp2vae.pretraining import NoPretraining as NoPretraining
    from tf_dp2vae.pretraining import Public as Public
    from tf_dp2vae.pretraining import Unprotected as Unprotected
    from tf_dp2vae.priors import GaussianPrior as GaussianPrior
    from tf_dp2vae.priors import NormalPrior as NormalPrior
    from tf_dp2vae.randomness import InsecureSeed as InsecureSeed
    from tf_dp2vae.records import Records as Records
    from tf_dp2vae.records import checked_records as checked_records
    from tf_dp2vae.refinement import Refinement as Refinement
    from tf_dp2vae.saved import load as load
    from tf_dp2vae.units import bound_per_unit as bound_per_unit
    from tf_dp2vae.validation import InvalidInputError as InvalidInputError

if not (3, 10) <= sys.version_info[:2] < (3, 12):
    raise ImportError("tf_dp2vae needs Python 3.10 or 3.11, because tensorflow-privacy 0.9.0 supports no newer one.")

_HOME = {
    "BudgetExceededError": "accounting",
    "Checkpoints": "checkpoints",
    "DP2VAE": "model",
    "DPAdam": "optimizers",
    "DPSGD": "optimizers",
    "Dreams": "pretraining",
    "GaussianPrior": "priors",
    "InsecureSeed": "randomness",
    "InvalidInputError": "validation",
    "Ledger": "ledger",
    "NoPretraining": "pretraining",
    "NormalPrior": "priors",
    "NotPrivate": "baselines",
    "Privacy": "accounting",
    "Public": "pretraining",
    "Records": "records",
    "Refinement": "refinement",
    "Shifts": "augmentation",
    "StatisticsAlone": "baselines",
    "Unprotected": "pretraining",
    "bound_per_unit": "units",
    "build_decoder": "networks",
    "build_encoder": "networks",
    "build_linear_decoder": "baselines",
    "checked_records": "records",
    "load": "saved",
}

_MODULES = ("datasets",)

__all__ = list(_HOME) + list(_MODULES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Imports on first use: `import tf_dp2vae` alone does not start TensorFlow."""
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if (backend := os.environ.get("KERAS_BACKEND", "tensorflow")) != "tensorflow":
        raise ImportError(f"tf_dp2vae trains by TensorFlow, and KERAS_BACKEND={backend}: set it to tensorflow.")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
