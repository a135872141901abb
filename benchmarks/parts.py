"""The parts of a private step one by one, and the ways of doing each that were tried.

    python benchmarks/parts.py

Shapes are those of the mnist-conv decoder's first transposed convolution (64 to 32 channels, 7×7 to 14×14, 4×4 kernel,
stride 2) at 256 examples, where most of the time goes. Prints medians in milliseconds, by TensorFlow's kernels and by XLA;
repetitions are interleaved.
"""

from __future__ import annotations

import checkout  # noqa: F401 - before whatever imports TensorFlow or the package

# isort: split
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import tensorflow as tf

from tf_dp2vae.patches import Window, patches

EXAMPLES, REPETITIONS = 256, 11
AXES = [Window(14, 7, 4, 2, 1, 1)] * 2


def strided_slices(images: tf.Tensor) -> tf.Tensor:
    """The way before the gather."""
    padded = tf.pad(images, [(0, 0), (1, 1), (1, 1), (0, 0)])
    return tf.concat([padded[:, i : i + 13 : 2, j : j + 13 : 2] for i in range(4) for j in range(4)], -1)


def parts() -> dict[str, Callable[[], tf.Tensor]]:
    """Each part as a function of variables, which no compiler folds into constants."""
    random = np.random.default_rng(0)

    def variable(*shape: int) -> tf.Variable:
        return tf.Variable(random.normal(size=shape).astype(np.float32))

    inputs, gradient, kernel = variable(EXAMPLES, 7, 7, 64), variable(EXAMPLES, 14, 14, 32), variable(4, 4, 32, 64)
    left, right, formed = variable(EXAMPLES, 49, 512), variable(EXAMPLES, 49, 64), variable(EXAMPLES, 512 * 64)
    narrow_left, narrow_right = variable(EXAMPLES, 196, 144), variable(EXAMPLES, 196, 4)
    clip = variable(EXAMPLES)
    return {
        "ordinary: forward": lambda: tf.nn.conv2d_transpose(inputs, kernel, [EXAMPLES, 14, 14, 32], 2, "SAME"),
        "ordinary: input gradient": lambda: tf.nn.conv2d(gradient, kernel, 2, "SAME"),
        "ordinary: weight gradient": lambda: tf.raw_ops.Conv2DBackpropFilter(
            input=gradient, filter_sizes=[4, 4, 32, 64], out_backprop=inputs, strides=[1, 2, 2, 1], padding="SAME"
        ),
        "patches: gather": lambda: patches(gradient, AXES),
        "patches: strided slices": lambda: strided_slices(gradient),
        "patches: extract_patches": lambda: tf.image.extract_patches(
            gradient, [1, 4, 4, 1], [1, 2, 2, 1], [1, 1, 1, 1], "SAME"
        ),
        "product": lambda: tf.linalg.matmul(left, right, transpose_a=True),
        "product, the other way round": lambda: tf.linalg.matmul(right, left, transpose_a=True),
        "narrow product": lambda: tf.linalg.matmul(narrow_left, narrow_right, transpose_a=True),
        "narrow product, the other way round": lambda: tf.linalg.matmul(narrow_right, narrow_left, transpose_a=True),
        "two Gram matrices": lambda: tf.reduce_sum(
            tf.linalg.matmul(left, left, transpose_b=True) * tf.linalg.matmul(right, right, transpose_b=True), (1, 2)
        ),
        "norm: square and sum": lambda: tf.reduce_sum(tf.square(formed), 1),
        "norm: one reduction": lambda: tf.math.reduce_euclidean_norm(formed, 1),
        "sum: vector times formed products": lambda: tf.linalg.matmul(clip[None], formed),
        "sum: where, multiply, reduce": lambda: tf.reduce_sum(
            tf.where(clip[:, None] > 0, clip[:, None] * formed, 0.0), 0
        ),
        "sum: second product of patches": lambda: tf.linalg.matmul(
            tf.reshape(left, [-1, 512]), tf.reshape(right * clip[:, None, None], [-1, 64]), transpose_a=True
        ),
    }


def timed(functions: dict[str, Callable]) -> dict[str, float]:
    """Medians in milliseconds; leaves out what cannot run."""
    times: dict[str, list[float]] = {}
    for name, function in functions.items():
        try:
            function()
            times[name] = []
        except tf.errors.InvalidArgumentError:
            continue
    for _ in range(REPETITIONS):
        for name in times:
            start = time.perf_counter()
            functions[name]()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: median(values) for name, values in times.items()}


def main() -> None:
    compiled = [
        timed({name: tf.function(part, jit_compile=xla, autograph=False) for name, part in parts().items()})
        for xla in (False, True)
    ]
    print("| part | TensorFlow | XLA |\n|---|---|---|")
    for name in parts():
        print("|", " | ".join([name, *(f"{times[name]:.1f}" if name in times else "none" for times in compiled)]), "|")


if __name__ == "__main__":
    main()
