"""ε of a statement's events by dp_accounting alone, at its own default settings: what anyone else would compute."""

import dp_accounting
from dp_accounting import pld, rdp


def recomputed_epsilon(events, delta, accountant="rdp", times=1):
    """ε of the events as `privacy.json` lists them, each composed that many times."""
    found = rdp.RdpAccountant() if accountant == "rdp" else pld.PLDAccountant()
    for event in events:
        one = dp_accounting.GaussianDpEvent(event["noise_multiplier"])
        if event["sampling_rate"] < 1:
            one = dp_accounting.PoissonSampledDpEvent(event["sampling_rate"], one)
        found.compose(dp_accounting.SelfComposedDpEvent(one, times * event["count"]))
    return found.get_epsilon(delta)
