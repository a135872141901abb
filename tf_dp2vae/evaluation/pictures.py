"""The report's pictures. All show real records or numbers made from them: private."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tf_dp2vae import figures
from tf_dp2vae.evaluation.real import Labelled
from tf_dp2vae.evaluation.report import Report
from tf_dp2vae.records import FULL_SCALE

_COLUMNS = 10
_QUANTITIES = {"acc_cnn": "CNN accuracy on real test images", "fid": "FID"}


def samples_beside_records(synthetic: Labelled, records: Labelled, file: Path) -> None:
    """For each class a row of samples, and below it a row of records."""
    rows = []
    for label in np.unique(records[1])[:_COLUMNS]:
        for images, labels in (synthetic, records):
            rows.append(_first(images[labels == label]))
    figures.image_rows(np.stack(rows), file)


def _first(images: np.ndarray) -> np.ndarray:
    """Ten images in [0, 1], grey ones standing in where there are fewer."""
    found = np.full((_COLUMNS, *images.shape[1:]), 0.5, np.float32)
    chosen = images[:_COLUMNS]
    found[: len(chosen)] = chosen / FULL_SCALE if images.dtype == np.uint8 else chosen
    return found


def quantities_against_epsilon(report: Report, run: Path, folder: Path) -> None:
    """Accuracy and FID against ε: this run among those beside it that were evaluated on the same data.

    A line is of one way of training, and of FIDs that may be compared: of equally many samples, against the same images.
    """
    found = {run.name: report.to_json()}
    for file in run.parent.glob("*/private/evaluation/report.json"):
        other = _read(file)
        if other.get("dataset") == report.dataset:
            found.setdefault(file.parents[2].name, other)
    for quantity, words in _QUANTITIES.items():
        points = [
            (epsilon, entry[quantity], ", ".join([_way(entry), covered, *(_sizes(entry) if quantity == "fid" else [])]))
            for entry in found.values()
            for epsilon, covered in [_epsilon(entry)]
            if epsilon is not None and entry.get(quantity) is not None
        ]
        if points:
            figures.against_epsilon(points, words, folder / f"{quantity}_against_epsilon.png")


def _epsilon(entry: dict[str, Any]) -> tuple[float | None, str]:
    if entry.get("epsilon") is not None:
        return entry["epsilon"], "end to end"
    return (entry.get("given_encoder") or {}).get("epsilon"), "given the encoder only"


def _way(entry: dict[str, Any]) -> str:
    """The name before what the statement says of the pre-training."""
    said = entry.get("pretraining")
    return said.partition(":")[0].lower() if isinstance(said, str) else "unnamed way of training"


def _sizes(entry: dict[str, Any]) -> list[str]:
    against = {"train": "records", "test": "test images"}.get(str(entry.get("fid_against")), "unnamed images")
    return [f"{entry.get('fid_samples', '?')} samples against {against}"]


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}
