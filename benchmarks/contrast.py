"""What the contrast does to FID and KID: one release's samples as they are, and with the gain taken out again.

    python benchmarks/contrast.py runs/mnist-dreams-eps1-seed0

A line a gain, against as many real test images. Nothing was chosen by these numbers. Where there was refinement, the decoder
was matched at its gain. Rows go to benchmarks/results/contrast.json.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from checkout import ROOT
from simple_parsing.helpers.fields import field as flag

from tf_dp2vae import datasets
from tf_dp2vae.commands import parse
from tf_dp2vae.evaluation.fid import fid, kid
from tf_dp2vae.evaluation.inception import InceptionFeatures, find_weights
from tf_dp2vae.evaluation.release import read_release

RESULTS = ROOT / "benchmarks" / "results" / "contrast.json"
_SMALLEST = 1e-6


@dataclass(frozen=True)
class Flags:
    """Contrast.

    Attributes:
      run: folder of the run, runs/<name>.
      images: samples, and real test images, for FID and KID.
      dataset: real data, as for train.py.
      data: an .npz, instead of --dataset.
      inception_weights: as for evaluate.py; by default those in shared/data.
    """

    run: Path = flag(positional=True)
    images: int = 1_000
    dataset: str = "mnist"
    data: Path | None = None
    inception_weights: Path | None = None


def without_gain(images: np.ndarray, gain: float) -> np.ndarray:
    """The samples as a plain sigmoid would have shown them."""
    inside = np.clip(images.astype(np.float64), _SMALLEST, 1 - _SMALLEST)
    logits = np.log(inside) - np.log1p(-inside)
    return (1 / (1 + np.exp(-logits / gain))).astype(np.float32)


def main() -> None:
    flags = parse(Flags, __doc__)
    release = read_release(flags.run)
    weights = find_weights(flags.inception_weights)
    test = (datasets.load_npz(flags.data) if flags.data else datasets.load(flags.dataset)).test
    if weights is None or test is None:
        raise SystemExit("contrast.py: Inception weights and a data set with test images are needed.")
    features = InceptionFeatures(weights)
    with test.opened() as (images, _):
        real = features(images[: flags.images], "real test images")
    samples, gain = release.samples(flags.images, seed=0)[0], float(release.sampler._contrast.gain)
    rows = [row for row in _known() if row["run"] != flags.run.name]
    print("| run | gain | images a side | FID | KID |\n|---|---|---|---|---|")
    for applied, shown in ((1.0, without_gain(samples, gain)), (gain, samples)):
        found = features(shown, f"samples at gain {applied:.2f}")
        row = {
            "run": flags.run.name,
            "gain": round(applied, 2),
            "images": len(found),
            "fid": round(fid(found, real), 1),
            "kid": round(kid(found, real, subset_size=len(found) // 2).mean, 4),
        }
        print("| " + " | ".join(str(value) for value in row.values()) + " |", flush=True)
        rows.append(row)
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def _known() -> list[dict]:
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else []


if __name__ == "__main__":
    main()
