"""Do samples look like the records? FID, KID, precision, recall, density and coverage, in the field's features."""

from __future__ import annotations

import numpy as np

from tf_dp2vae.evaluation.cache import Cache, digest
from tf_dp2vae.evaluation.coverage import NEIGHBOURS, coverage
from tf_dp2vae.evaluation.fid import fid, kid
from tf_dp2vae.evaluation.inception import InceptionFeatures
from tf_dp2vae.evaluation.report import Part, missing

_SUBSET_SEED = 0
_WITHOUT = (
    "no Inception weights. `python -m tf_dp2vae.evaluation.inception_weights OUT.npz` fetches them; give them as "
    "--inception-weights OUT.npz"
)


def fidelity(samples: np.ndarray, records: np.ndarray, features: InceptionFeatures | None, cache: Cache) -> Part:
    """Samples against as many records (all of them where there are fewer), as papers do it: against the training set.

    Args:
      samples: [n, h, w, c], float in [0, 1].
      records: [N, h, w, c], uint8.
      features: None where there are no weights.
      cache: keeps the records' features.
    """
    if features is None:
        return missing("Fidelity", _WITHOUT)
    reference = records
    if len(samples) < len(records):
        chosen = np.random.default_rng(_SUBSET_SEED).choice(len(records), len(samples), replace=False)
        reference = records[np.sort(chosen)]
    real = cache.array(
        f"features-{digest(features.digest, reference)}", lambda: features(reference, "features of records")
    )
    return _compare(features(samples, "features of samples"), real)


def _compare(found: np.ndarray, real: np.ndarray) -> Part:
    sizes = f"{len(found):,} samples against {len(real):,} records"
    half = len(real) // 2
    shuffled = np.random.default_rng(_SUBSET_SEED).permutation(len(real))
    distance, floor = fid(found, real), fid(real[shuffled[:half]], real[shuffled[half : 2 * half]])
    kernel, shares = kid(found, real), coverage(real, found)
    values = {
        "fid": distance,
        "fid_samples": len(found),
        "fid_records": len(real),
        "fid_of_records_in_halves": floor,
        "fid_half": half,
        "kid": kernel.mean,
        "kid_deviation": kernel.deviation,
        "kid_subset_size": kernel.subset_size,
        "precision": shares.precision,
        "recall": shares.recall,
        "density": shares.density,
        "coverage": shares.coverage,
        "neighbours": NEIGHBOURS,
    }
    rows = [
        ("FID", f"{distance:.2f} ({sizes})"),
        ("FID, records against records", f"{floor:.2f} ({half:,} against {half:,} others; smaller sets read higher)"),
        ("KID", f"{kernel.mean:.4f} ± {kernel.deviation:.4f} (100 subsets of {kernel.subset_size:,} a side)"),
        ("precision, recall", f"{shares.precision:.3f}, {shares.recall:.3f} ({sizes}, k = {NEIGHBOURS})"),
        ("density, coverage", f"{shares.density:.3f}, {shares.coverage:.3f} ({sizes}, k = {NEIGHBOURS})"),
    ]
    return Part("Fidelity", rows, values)
