"""Imports TensorFlow as the commands want it: quick, and without chatter. Import this before whatever imports TensorFlow.

TensorFlow chooses oneDNN's kernels by itself on some processors only. On others a batched product, of which per-example
clipping is made, takes four times as long without them (docs/speed.md), so the commands ask for them.

TensorFlow's C++ libraries write to standard error before any of their log settings apply, six lines that would hide the
one line with which a command refuses bad input. Errors of the import itself are raised as ever.

While TensorFlow is imported, Ctrl-C ends the program without a traceback: nothing is read yet, and among which of
TensorFlow's modules it came would be no help.
"""

import os
import signal
import sys
from threading import current_thread, main_thread

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ["KERAS_BACKEND"] = "tensorflow"  # whatever Keras is set to for other programs

if sys.stderr is None:  # closed by the shell; then its number is free, and the next file that is opened would get it
    sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for as long as the program runs
    os.dup2(sys.stderr.fileno(), 2)
sys.stderr.flush()
_interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler and current_thread() is main_thread()
if _interruptible:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
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
    if _interruptible:
        signal.signal(signal.SIGINT, signal.default_int_handler)
