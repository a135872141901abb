"""Lets a benchmark import the package of its own checkout, with TensorFlow's start-up lines hidden. Import it first."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import tf_dp2vae.quiet  # noqa: E402, F401
