"""The audit of a finished run, from its folder: do its numbers agree, and what does the release tell?

What can honestly be asked of a run that is over:

  accounting   ε, composed anew from the events in `privacy.json` by both accountants; the ledger's events beside them; and
               whether the statement claims more than its own fields allow.
  membership   the likelihood-ratio attack on records and test images (`evaluation.membership`), two by two: which of a pair
               was trained on? If records and test images are alike but for that, each pair is a fair coin, and the one-run
               bound holds for replacement. A control, the same attack without the release, shows whether they are alike.
  canaries     where the run was trained with `--audit-canaries`: the one-run audit of the coins.

The last two see the release alone (black-box). At ε near 1 no such attack comes near the claim, for a sound run and for
many a broken one: they find gross leaks. The mechanisms have tests of their own (`implementation`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tf_dp2vae import accounting
from tf_dp2vae.accounting import Event
from tf_dp2vae.audit.image_canaries import FILE, ImageCanaries
from tf_dp2vae.audit.one_run import OneRunVerdict, one_run_verdict
from tf_dp2vae.evaluation.membership import CONTROL, LIKELIHOOD_RATIO, attack_scores, impossible
from tf_dp2vae.evaluation.real import Labelled, RealImages
from tf_dp2vae.evaluation.report import Part, missing
from tf_dp2vae.ledger import Ledger
from tf_dp2vae.runs import ledger_file
from tf_dp2vae.statement import INSECURE
from tf_dp2vae.units import Unit
from tf_dp2vae.validation import InvalidInputError, check, check_whole

_TOLERANCE = 1e-6
"""Relative. The same accountant at the same events gives the same ε; another version of it may round otherwise."""


@dataclass(frozen=True)
class Finding:
    """One part of the audit.

    Attributes:
      part: what to show.
      refuted: whether something that the run states was found untrue.
    """

    part: Part
    refuted: bool


def accounting_agrees(statement: dict[str, Any], private: Path) -> Finding:
    """ε composed anew, and the ledger beside the statement.

    Raises:
      InvalidInputError: the statement's events cannot be read, or the ledger is damaged or in use.
    """
    events, trials = _events(statement), statement.get("trials", 1)
    check_whole(way_out="privacy.json is damaged, train again", trials=trials)
    composed = tuple(replace(event, count=event.count * trials) for event in events)
    rows, values, wrong = [], dict[str, Any](), []
    stated = statement if statement["end_to_end"] else statement.get("given_encoder") or {}
    for name in accounting.ACCOUNTANTS:
        anew = accounting.epsilon(composed, statement["delta"], name)  # type: ignore[arg-type]
        told = stated.get(f"epsilon_{name}")
        agrees = told is None or math.isclose(anew, told, rel_tol=_TOLERANCE)
        wrong += [] if agrees else [f"ε by {name.upper()}"]
        rows.append((f"ε by {name.upper()}, composed anew", f"{anew:.6g} ({_beside(told, agrees)})"))
        values[f"epsilon_{name}"] = anew
    if statement["epsilon"] is not None and statement["epsilon"] != statement.get(f"epsilon_{statement['accountant']}"):
        wrong.append("ε and the accountant that is named for it")
    if statement["epsilon"] is not None and ("not_private" in statement or statement.get("noise") == INSECURE):
        wrong.append("an ε beside noise that hides nothing")
    words, more = _ledger_beside(events, statement, private)
    wrong += ["the ledger"] if more else []
    rows += [("ledger", words), ("does not agree", ", ".join(wrong) or "nothing")]
    return Finding(Part("Accounting", rows, {"accounting": {**values, "disagree": wrong}}), bool(wrong))


def membership_bound(samples: Labelled, real: RealImages, seed: int, statement: dict[str, Any]) -> Finding:
    """Which of a record and a test image was trained on, and what the right answers prove."""
    if why := impossible(real):
        return Finding(missing("Membership inference", why), False)
    scores, delta = attack_scores(samples, real, seed), statement["delta"]
    verdicts = {name: _of_pairs(*scores[name], delta) for name in (LIKELIHOOD_RATIO, CONTROL)}
    alike = verdicts[CONTROL].lower_bound == 0
    rows = [_row(name, verdict, "pairs") for name, verdict in verdicts.items()]
    if not alike:
        rows.append(
            ("but", "records and test images differ without the release too, so the bound proves nothing of it")
        )
    values = {name.replace(" ", "_"): verdict._asdict() for name, verdict in verdicts.items()}
    bound = verdicts[LIKELIHOOD_RATIO].lower_bound if alike else 0.0
    part = Part("Membership inference, a record or a test image", rows, {"membership": {**values, "alike": alike}})
    return Finding(part, _exceeds(bound, statement))


def canary_bound(samples: Labelled, private: Path, statement: dict[str, Any]) -> Finding:
    """The one-run audit of the canaries that the run was trained with."""
    title, planted = "Canaries of one run", statement.get("audit_canaries", 0)
    if not (private / FILE).is_file():
        why = "none were planted (train with --audit-canaries)" if not planted else f"{private / FILE} is not there"
        return Finding(missing(title, why), False)
    canaries = ImageCanaries.read(private)
    check(
        len(canaries.included) == planted and canaries.images.shape[1:] == samples[0].shape[1:],
        f"{private / FILE} holds {len(canaries.included)} canaries of another run: the statement says {planted}.",
    )
    verdict = one_run_verdict(canaries.scores(samples), canaries.included, statement["delta"])
    part = Part(title, [_row("release alone", verdict, "canaries")], {"canaries": verdict._asdict()})
    return Finding(part, _exceeds(verdict.lower_bound, statement))


def _events(statement: dict[str, Any]) -> tuple[Event, ...]:
    try:
        return tuple(Event.from_json(entry) for entry in statement["events"])
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInputError(f"the events in privacy.json are damaged ({error}): train again.") from error


def _beside(told: float | None, agrees: bool) -> str:
    return "none is stated" if told is None else f"stated: {told:.6g}" + ("" if agrees else ", WHICH DISAGREES")


def _ledger_beside(events: tuple[Event, ...], statement: dict[str, Any], private: Path) -> tuple[str, bool]:
    """In words, and whether the two disagree. A shared ledger may have gone on, but never holds less."""
    file = ledger_file(private)
    if not file.is_file():
        return f"{file} is not there, so nothing is compared", False
    with Ledger(file) as ledger:
        held = ledger.events
        header = (ledger.guaranteed, ledger.num_records, ledger.adjacency) if ledger.count else ()
    uncharged, more = accounting.lacking(events, held), accounting.lacking(held, events)
    wrong = [*uncharged, *more] if uncharged or not statement.get("shared_ledger") else []
    stated = statement["epsilon"] is not None, statement.get("num_records"), _unit(statement).in_full
    kinds = "whether a guarantee holds", "the number of records", "the unit"
    wrong += [kind for kind, there, told in zip(kinds, header, stated) if there != told]
    if wrong:
        return f"DISAGREES with the statement about {', '.join(dict.fromkeys(wrong))}", True
    return "holds what is stated" + (", and what other runs spent since" if more else ""), False


def _unit(statement: dict[str, Any]) -> Unit:
    column = statement.get("unit_column")
    return (
        Unit() if column is None else Unit(column, statement.get("max_records_per_unit", 0), statement.get("num_units"))
    )


def _of_pairs(members: np.ndarray, others: np.ndarray, delta: float) -> OneRunVerdict:
    return one_run_verdict(members - others, np.ones(len(members), bool), delta, paired=True)


def _row(name: str, verdict: OneRunVerdict, what: str) -> tuple[str, str]:
    guessed = f"{verdict.right} of {verdict.guesses} guesses right, of {verdict.canaries} {what}"
    return f"{name}: ε is at least", f"{verdict.lower_bound:.2f} ({guessed}; 95 %)"


def _exceeds(bound: float, statement: dict[str, Any]) -> bool:
    return statement["epsilon"] is not None and bound > statement["epsilon"]
