"""A run of `faults.py` seen from outside: what its witness told, its ledger as plain lines, dp_accounting alone."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path

import dp_accounting
from dp_accounting import rdp
from fault_processes import STEPS


class Observer:
    """What one run's processes told, added up, and the ledger read as plain lines of JSON."""

    def __init__(self, path: Path):
        self.path = path
        self.made: Counter[str] = Counter()
        self.used: dict[str, set[str]] = defaultdict(set)
        self._charged = 0

    def hear(self, told: list[str]) -> None:
        """Adds what a process told."""
        for line in told:
            word, *rest = line.split("\t")
            if word == "made":
                self.made[rest[0]] += 1
            elif word == "used":
                self.used[rest[0]].add(rest[1])

    def charges(self) -> list[dict]:
        """The ledger's whole lines that charge something."""
        file = self.path / "private" / "ledger.jsonl"
        lines = file.read_bytes().split(b"\n") if file.exists() else []
        entries = [json.loads(line) for line in lines if line.endswith(b"}")]
        return [entry for entry in entries if "noise_multiplier" in entry]

    def undercounted(self) -> bool:
        """More answered than charged, two answers for one charge, an answer without one, or a charge that vanished."""
        charges = self.charges()
        steps = sum(charge["mechanism"] == "clipped gradient sum" for charge in charges)
        vanished, self._charged = len(charges) < self._charged, max(self._charged, len(charges))
        names = {charge["hash"] for charge in charges}
        return (
            vanished
            or self.made["clipped gradient sum"] > steps
            or any(len(answers) > 1 or charge not in names for charge, answers in self.used.items())
        )

    def finished_rightly(self) -> bool:
        """The charges of one plan, a whole release that states them, ε within the target by dp_accounting alone."""
        release = self.path / "release"
        if not all((release / name).exists() for name in ("sampler", "privacy.json", "privacy.md", "samples.png")):
            return False
        stated = json.loads((release / "privacy.json").read_text())
        charged = Counter(charge["mechanism"] for charge in self.charges())
        accountant = rdp.RdpAccountant()
        for charge in self.charges():
            event: dp_accounting.DpEvent = dp_accounting.GaussianDpEvent(charge["noise_multiplier"])
            accountant.compose(dp_accounting.PoissonSampledDpEvent(charge["sampling_rate"], event), charge["count"])
        releases = ("class statistics", "dream moments", "latent moments", "feature means")
        planned = {**dict.fromkeys(releases, 1), "clipped gradient sum": STEPS}
        return (
            charged == planned
            and {event["mechanism"]: event["count"] for event in stated["events"]} == planned
            and accountant.get_epsilon(stated["delta"]) <= 2 * (1 + 5e-3)
            and abs(accountant.get_epsilon(stated["delta"]) - stated["epsilon"]) < 1e-2
        )
