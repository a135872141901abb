"""Lets a benchmark import the package of its own checkout, with TensorFlow's start-up lines hidden. Import it first."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import tf_dp2vae.quiet  # noqa: F401
