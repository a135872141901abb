"""Opacus' ε of given events: run by `accountants.py` under the interpreter that has requirements-bench.txt.

Reads a JSON list of {"events": [[σ, q, count], …], "delta": δ, "orders": […]} and writes for each {"rdp", "rdp_our_orders",
"prv"}.
"""

import json
import sys

from opacus.accountants import PRVAccountant, RDPAccountant

PRV_ERROR = 5e-4
"""Bound on ε's error that the PRV accountant adds to its answer; its default, 0.01, would be 5 % of ε = 0.2."""


def spent(case: dict) -> dict[str, float]:
    """ε of one case, by RDP at Opacus' own orders and at ours, and by PRV."""
    rdp, prv = RDPAccountant(), PRVAccountant()
    rdp.history = prv.history = [(sigma, rate, count) for sigma, rate, count in case["events"]]
    delta = case["delta"]
    return {
        "rdp": rdp.get_epsilon(delta),
        "rdp_our_orders": rdp.get_epsilon(delta, alphas=case["orders"]),
        "prv": float(prv.get_epsilon(delta, eps_error=PRV_ERROR)),
    }


if __name__ == "__main__":
    json.dump([spent(case) for case in json.load(sys.stdin)], sys.stdout)
