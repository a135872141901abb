"""Imports TensorFlow without its start-up chatter. Import this module before anything that imports TensorFlow.

TensorFlow's C++ libraries write to standard error before any of their log settings apply, six lines that would hide the
one line with which a command refuses bad input. Errors of the import itself are raised as ever.
"""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

sys.stderr.flush()
_stderr = os.dup(2)
_nowhere = os.open(os.devnull, os.O_WRONLY)
os.dup2(_nowhere, 2)
try:
    import tensorflow  # noqa: F401
finally:
    os.dup2(_stderr, 2)
    os.close(_stderr)
    os.close(_nowhere)
