"""Do samples copy records? Distances of samples to their nearest training record, against those to test records.

Where nothing is copied, a sample's nearest neighbour among equally many records and test images is a record half of the
time. Distances are Euclidean, over pixels in [0, 1].
"""

from __future__ import annotations

import numpy as np
from scipy.stats import binomtest
from sklearn.neighbors import NearestNeighbors

from tf_dp2vae.evaluation.real import RealImages
from tf_dp2vae.evaluation.report import Part
from tf_dp2vae.records import FULL_SCALE

_PAIRS = 10


def neighbours(samples: np.ndarray, real: RealImages, seed: int) -> tuple[Part, np.ndarray]:
    """Distances, and the pairs of sample and training record that lie closest.

    Args:
      samples: [n, h, w, c] in [0, 1].
      real: records and test images; as many records are drawn as there are test images.
      seed: of that choice.

    Returns:
      The report's part, and the closest pairs over *all* records, [2, pairs, h, w, c]: samples above, records below.
    """
    assert real.test is not None
    flat = samples.reshape(len(samples), -1)
    records = real.train[0].reshape(len(real.train[0]), -1) / np.float32(FULL_SCALE)
    others = real.test[0].reshape(len(real.test[0]), -1) / np.float32(FULL_SCALE)
    size = min(len(records), len(others))
    random = np.random.default_rng(seed)
    drawn = [part[random.choice(len(part), size, replace=False)] for part in (records, others)]
    (to_records, _), (to_others, _) = (nearest(flat, part) for part in drawn)
    nearer = int((to_records < to_others).sum())
    apart = int((to_records != to_others).sum())
    interval = binomtest(nearer, max(apart, 1)).proportion_ci(0.95, method="exact")

    distances, indices = nearest(flat, records)
    closest = np.argsort(distances, kind="stable")[:_PAIRS]
    pairs = np.stack([samples[closest], real.train[0][indices[closest]] / np.float32(FULL_SCALE)])
    share = nearer / max(apart, 1)
    medians = float(np.median(to_records)), float(np.median(to_others))
    rows = [
        ("median distance to nearest record, test image", f"{medians[0]:.3f}, {medians[1]:.3f} (of {size:,} each)"),
        (
            "samples nearer to a record than to a test image",
            f"{share:.1%} (95 %: {interval.low:.1%} to {interval.high:.1%}; chance 50 %)",
        ),
        ("closest pair over all records", f"{distances[closest[0]]:.3f}"),
    ]
    values = {
        "samples": len(samples),
        "records": size,
        "median_distance_to_records": medians[0],
        "median_distance_to_others": medians[1],
        "nearer_to_records": share,
        "nearer_to_records_interval": [float(interval.low), float(interval.high)],
        "closest_distance": float(distances[closest[0]]),
    }
    title = f"Nearest neighbours of {len(samples):,} samples among {size:,} records and {size:,} test images"
    return Part(title, rows, {"neighbours": values}), pairs


def nearest(points: np.ndarray, candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance of each point [n, d] to its nearest candidate [m, d], and which one that is, [n] each."""
    distances, indices = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(candidates).kneighbors(points)
    return distances[:, 0], indices[:, 0]
