"""Imports TensorFlow as the commands want it: quick, and without chatter. Import this before whatever imports TensorFlow.

TensorFlow chooses oneDNN's kernels by itself on some processors only. On others a batched product, of which per-example
clipping is made, takes four times as long without them (docs/speed.md), so the commands ask for them.

TensorFlow's C++ libraries write to standard error before any of their log settings apply, six lines that would hide the
one line with which a command refuses bad input. Errors of the import itself are raised as ever.

Until a command has begun, Ctrl-C ends the program as it ends any other: nothing is read yet, and where among TensorFlow's
modules it was would be no help. `commands` takes over from there.
"""

import os
import signal
import sys

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ["KERAS_BACKEND"] = "tensorflow"  # whatever Keras is set to for other programs

sys.stderr.flush()
_stderr = os.dup(2)
_nowhere = os.open(os.devnull, os.O_WRONLY)
os.dup2(_nowhere, 2)
try:
    import keras
    import tensorflow  # noqa: F401

    keras.config.set_image_data_format("channels_last")
finally:
    os.dup2(_stderr, 2)
    os.close(_stderr)
    os.close(_nowhere)
