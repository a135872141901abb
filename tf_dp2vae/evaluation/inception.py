"""The features that the field's FID is measured in: the last pool of Google's Inception graph of 2015.

`keras.applications.InceptionV3` has the same 94 convolutions as that graph and differs from it in one layer: the pool branch
of the last block is a maximum there. Other differences to a classifier of today lie in the input: resizing is TensorFlow 1's
bilinear one, which puts no pixel at its centre, and pixels are (x − 128)/128.

Reference: Szegedy, Vanhoucke, Ioffe, Shlens, Wojna 2015 (the graph); Heusel, Ramsauer, Unterthiner, Nessler, Hochreiter 2017
(its use for FID).
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from tf_dp2vae.records import FULL_SCALE
from tf_dp2vae.validation import InvalidInputError, check, check_path

WAY_TO_WEIGHTS = (
    "`python -m tf_dp2vae.evaluation.inception_weights OUT.npz` fetches them; give them as --inception-weights OUT.npz"
)
FEATURES = 2048
_SIDE = 299
_BATCH = 50
_VARIANCE_FLOOR = 1e-3
PARTS = ("kernel", "beta", "mean", "var")
CONTENT_SHA256 = "5515be3ed58bdb99dfa1337cfbd57b39f5ac40cfd63040f1e37623e711721e88"
_PROJECT = Path(__file__).resolve().parents[2]
WEIGHTS_FILE = "inception2015_pool3_weights.npz"


class InceptionFeatures:
    """The 2,048 numbers of an image that FID, KID, precision, recall, density and coverage compare.

    Attributes:
      digest: sha256 of the weights, part of the name of whatever is cached.
    """

    digest = CONTENT_SHA256

    def __init__(self, weights: Path):
        """Args: an .npz with `kernel`, `beta`, `mean` and `var` of each convolution, in the graph's order.

        Raises:
          InvalidInputError: the file is missing, or its numbers are not those of the field's graph.
        """
        self._network = _network(_read(weights))
        self._of_batch = tf.function(
            self._features, input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8)], autograph=False
        )

    def __call__(self, images: np.ndarray, title: str = "features") -> np.ndarray:
        """Features of images.

        Args:
          images: [n, height, width, 1 or 3], uint8, or float in [0, 1], which is rounded to 8 bits as a saved picture
            would be.
          title: what the progress bar says.

        Returns:
          float32 [n, 2048].
        """
        images = as_uint8(images)
        found = np.empty((len(images), FEATURES), np.float32)
        progress = keras.utils.Progbar(len(images), unit_name=f"images ({title})")
        for start in range(0, len(images), _BATCH):
            batch = np.repeat(images[start : start + _BATCH], 3 // images.shape[-1], axis=-1)
            found[start : start + len(batch)] = self._of_batch(tf.constant(batch)).numpy()
            progress.add(len(batch))
        return found

    def _features(self, images: tf.Tensor) -> tf.Tensor:
        large = tf.raw_ops.ResizeBilinear(
            images=tf.cast(images, tf.float32), size=[_SIDE, _SIDE], align_corners=False, half_pixel_centers=False
        )
        return self._network((large - 128.0) / 128.0, training=False)


def as_uint8(images: np.ndarray) -> np.ndarray:
    """Pixels as a saved picture holds them: 8 bits, whatever they were."""
    images = np.asarray(images)
    if images.dtype == np.uint8:
        return images
    return np.round(np.clip(images, 0.0, 1.0) * FULL_SCALE).astype(np.uint8)


def find_weights(named: Path | None, project: Path = _PROJECT) -> Path | None:
    """The file of weights: the named one, else the one in shared/data beside the project (or in it), else None."""
    if named is not None:
        return named
    places = [folder / "shared" / "data" / WEIGHTS_FILE for folder in (project.parent, project)]
    return next((file for file in places if file.is_file()), None)


def content_digest(arrays: dict[str, np.ndarray]) -> str:
    """sha256 over names, shapes and numbers: equal for equal weights, however the file was packed."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name}{arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name], np.float32).tobytes())
    return digest.hexdigest()


def convolution_names() -> list[str]:
    """Names of the graph's 94 convolutions, in the order in which Keras builds its own."""
    square = ["conv", "tower/conv", "tower/conv_1", *(f"tower_1/conv{i}" for i in ("", "_1", "_2")), "tower_2/conv"]
    thin = [f"tower/conv{i}" for i in ("", "_1", "_2")] + [f"tower_1/conv{i}" for i in ("", "_1", "_2", "_3", "_4")]
    wide = ["conv", "tower_conv", "tower_mixed_conv", "tower_mixed_conv_1", "tower_1_conv", "tower_1_conv_1"]
    blocks = {
        "mixed": square,
        "mixed_1": square,
        "mixed_2": square,
        "mixed_3": ["conv", *(f"tower/conv{i}" for i in ("", "_1", "_2"))],
        **{f"mixed_{i}": ["conv", *thin, "tower_2/conv"] for i in (4, 5, 6, 7)},
        "mixed_8": ["tower/conv", "tower/conv_1", *(f"tower_1/conv{i}" for i in ("", "_1", "_2", "_3"))],
        **{f"mixed_{i}": [*wide, "tower_1_mixed_conv", "tower_1_mixed_conv_1", "tower_2_conv"] for i in (9, 10)},
    }
    stem = ["conv", *(f"conv_{i}" for i in (1, 2, 3, 4))]
    return stem + [f"{block}/{name}" for block, names in blocks.items() for name in names]


def _read(file: Path) -> dict[str, np.ndarray]:
    check_path("Inception weights", file)
    check(file.is_file(), f"Inception weights {file} do not exist: {WAY_TO_WEIGHTS}.")
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except Exception as error:  # a damaged file raises whatever the zip, zlib and npy readers raise
        raise InvalidInputError(
            f"Inception weights {file} are not a readable .npz of plain arrays: {WAY_TO_WEIGHTS}."
        ) from error
    check(
        content_digest(arrays) == CONTENT_SHA256,
        f"{file} does not hold the weights of the field's Inception graph: a FID by other features is not comparable; "
        f"{WAY_TO_WEIGHTS}.",
    )
    return arrays


def _network(arrays: dict[str, np.ndarray]) -> keras.Model:
    """Keras's InceptionV3 with the graph's last pool; each batch norm is folded into its convolution, which saves a pass."""
    plain = _plain()
    pools = [layer for layer in plain.layers if isinstance(layer, layers.AveragePooling2D)]

    def folded(layer: keras.Layer) -> keras.Layer:
        if isinstance(layer, layers.Conv2D):
            return layers.Conv2D.from_config({**layer.get_config(), "use_bias": True})
        if isinstance(layer, layers.BatchNormalization):
            return layers.Identity(name=layer.name)
        if layer is pools[-1]:
            return layers.MaxPooling2D(layer.pool_size, layer.strides, layer.padding, name=layer.name)
        return layer.__class__.from_config(layer.get_config())

    # What is called with a batch norm's arguments (a mask) is an identity now, which takes none.
    network = keras.models.clone_model(
        plain, clone_function=folded, call_function=lambda layer, *inputs, **_: layer(*inputs)
    )
    for layer, name in zip(_convolutions(network), convolution_names(), strict=True):
        kernel, beta, mean, variance = (arrays[f"{name}/{part}"].astype(np.float64) for part in PARTS)
        gain = 1.0 / np.sqrt(variance + _VARIANCE_FLOOR)
        layer.set_weights([kernel * gain, beta - mean * gain])
    return network


def kernel_shapes() -> list[tuple[int, ...]]:
    """Shapes of the convolutions' kernels, in the order of `convolution_names`."""
    return [tuple(map(int, layer.weights[0].shape)) for layer in _convolutions(_plain())]


def _plain() -> keras.Model:
    return keras.applications.InceptionV3(include_top=False, weights=None, input_shape=(_SIDE, _SIDE, 3), pooling="avg")


def _convolutions(network: keras.Model) -> list[layers.Conv2D]:
    """In the order of their making. Keras numbers layers of a kind as it makes them: conv2d, conv2d_1, …"""
    found = [layer for layer in network.layers if isinstance(layer, layers.Conv2D)]
    return sorted(found, key=lambda layer: int(re.sub(r"\D", "", layer.name.removeprefix("conv2d")) or 0))
