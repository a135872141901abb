"""Do samples look like the records? FID, KID, precision, recall, density and coverage, in the field's features."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tf_dp2vae.evaluation.cache import Cache, digest
from tf_dp2vae.evaluation.coverage import NEIGHBOURS, coverage
from tf_dp2vae.evaluation.fid import fid, kid
from tf_dp2vae.evaluation.inception import WAY_TO_WEIGHTS, InceptionFeatures
from tf_dp2vae.evaluation.real import RealImages, ReferenceName
from tf_dp2vae.evaluation.report import Part, missing

_WORDS = {"train": "records", "test": "test images"}
_SUBSET_SEED = 0
_FEWEST = NEIGHBOURS + 1
"""Each image needs its neighbours; and halves of the real ones are compared with each other, where FID needs two a side."""


def fidelity(
    samples: np.ndarray, real: RealImages, against: ReferenceName, features: InceptionFeatures | None, cache: Cache
) -> Part:
    """Samples against as many real images (all of them where there are fewer).

    Args:
      samples: [n, h, w, c], float in [0, 1].
      real: records and test images.
      against: `train` for records, as papers do it, or `test`.
      features: None where there are no weights.
      cache: keeps the real images' features.
    """
    if features is None:
        return missing("Fidelity", f"no Inception weights: {WAY_TO_WEIGHTS}")
    chosen_set = real.test if against == "test" else real.train
    if chosen_set is None:
        return missing("Fidelity", real.without_test)
    reference = chosen_set[0]
    if min(len(samples), len(reference)) < _FEWEST:
        return missing(
            "Fidelity", f"{len(samples)} samples and {len(reference)} real images: {_FEWEST} are needed of each"
        )
    if len(samples) < len(reference):
        chosen = np.random.default_rng(_SUBSET_SEED).choice(len(reference), len(samples), replace=False)
        reference = reference[np.sort(chosen)]
    words = _WORDS[against]
    known = cache.array(
        f"features-{digest(features.digest, reference)}", lambda: features(reference, f"features of {words}")
    )
    part = _compare(features(samples, "features of samples"), known, words)
    return replace(part, values={**part.values, "fid_against": against})


def _compare(found: np.ndarray, real: np.ndarray, words: str) -> Part:
    sizes = f"{len(found):,} samples against {len(real):,} {words}"
    half = len(real) // 2
    shuffled = np.random.default_rng(_SUBSET_SEED).permutation(len(real))
    distance, floor = fid(found, real), fid(real[shuffled[:half]], real[shuffled[half : 2 * half]])
    kernel, shares = kid(found, real), coverage(real, found)
    size = f"{kernel.subset_size:,}"
    subsets = f"all {size}" if kernel.subsets == 1 else f"{kernel.subsets} subsets of {size}"
    values = {
        "fid": distance,
        "fid_samples": len(found),
        "fid_real": len(real),
        "fid_of_real_in_halves": floor,
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
        (f"FID, {words} against {words}", f"{floor:.2f} ({half:,} against {half:,} others; smaller sets read higher)"),
        ("KID", f"{kernel.mean:.4f} ± {kernel.deviation:.4f} ({subsets} a side)"),
        ("precision, recall", f"{shares.precision:.3f}, {shares.recall:.3f} ({sizes}, k = {NEIGHBOURS})"),
        ("density, coverage", f"{shares.density:.3f}, {shares.coverage:.3f} ({sizes}, k = {NEIGHBOURS})"),
    ]
    return Part("Fidelity", rows, values)
