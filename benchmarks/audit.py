"""Claimed ε beside measured lower bounds: every way of pre-training, and mechanisms with a break planted in them.

    python benchmarks/audit.py                        runs all sections (about ten minutes on a core), prints the tables
    python benchmarks/audit.py --only implementation  runs that section, keeps the others' rows
    python benchmarks/audit.py --only ''              runs none: the tables from the stored rows

| section          | the attacker sees                                                                             |
|------------------|-----------------------------------------------------------------------------------------------|
| `implementation` | each mechanism with its randomness laid open; p-values (`tf_dp2vae.audit.implementation`)      |
| `gradient`       | the weights after each step of one run with gradient canaries (one-run audit, white-box)       |
| `black-box`      | samples of the release of one run with canary images (one-run audit)                          |
| `stored`         | what `benchmarks/attack.py` measured: encoder matching, and likelihood ratios of transcripts   |

`caught` is computed: a p-value below one in a million, or a lower bound (95 %) above the claim. Sound mechanisms are run
again and again to see how often they are accused.
"""

from __future__ import annotations

import checkout  # noqa: F401 - before whatever imports TensorFlow or the package

# isort: split
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from broken import variants

from tf_dp2vae import datasets
from tf_dp2vae.accounting import Privacy
from tf_dp2vae.audit.dirac import SOUND, Parts
from tf_dp2vae.audit.gradient_canaries import GradientCanaries
from tf_dp2vae.audit.image_canaries import ImageCanaries
from tf_dp2vae.audit.implementation import ALARM, TESTS, ImplementationTests
from tf_dp2vae.audit.one_run import OneRunVerdict, one_run_verdict
from tf_dp2vae.baselines import NotPrivate
from tf_dp2vae.commands import parse
from tf_dp2vae.model import DP2VAE
from tf_dp2vae.networks import build_decoder, build_encoder
from tf_dp2vae.pretraining import Dreams, NoPretraining, Pretraining, Public, Unprotected
from tf_dp2vae.priors import GaussianPrior, NormalPrior
from tf_dp2vae.randomness import SystemEntropy
from tf_dp2vae.records import Records

RESULTS = Path(__file__).parent / "results"
FILE = RESULTS / "audit.json"
CLAIM = Privacy(epsilon=1.0, delta=1e-5, accountant="pld")
TEST_REPETITIONS, RUN_REPETITIONS, BROKEN_RUNS = 200, 20, 3
RECORDS, CANARIES, BATCH, ROUNDS, STEPS, LATENT, WIDTH, SAMPLES = 4000, 500, 256, 2, 20, 8, 4, 5000

Row = dict[str, Any]


def bound_row(section: str, variant: str, audit: str, bound: float, **more: Any) -> Row:
    """A row of an audit that gives a lower bound."""
    return {
        "section": section,
        "variant": variant,
        "claimed_epsilon": CLAIM.epsilon,
        "lower_bound": round(bound, 3),
        "audit": audit,
        "caught": bound > CLAIM.epsilon,
        **more,
    }


def guesses(verdict: OneRunVerdict) -> Row:
    """What the bound rests on."""
    return {"canaries": verdict.canaries, "guesses": verdict.guesses, "right": verdict.right}


def implementation() -> list[Row]:
    """Every test on every variant, and the sound one over and over."""
    rows = []
    for variant, parts in variants(8).items():
        tests = ImplementationTests(parts)
        repetitions = TEST_REPETITIONS if variant == "sound" else 1
        values = {name: [getattr(tests, name)() for _ in range(repetitions)] for name in TESTS}
        for name, found in values.items():
            rows.append(
                {
                    "section": "implementation",
                    "variant": variant,
                    "claimed_epsilon": CLAIM.epsilon,
                    "lower_bound": None,
                    "audit": name,
                    "caught": min(found) < ALARM,
                    "p_value": min(found),
                    "repetitions": repetitions,
                    "alarms": sum(p < ALARM for p in found),
                    "below_5_percent": sum(p < 0.05 for p in found),
                }
            )
        print(variant, [row["audit"] for row in rows if row["variant"] == variant and row["caught"]], flush=True)
    return rows


def gradient() -> list[Row]:
    """White-box one-run audits. Of the repeated runs the least bound stands in the table; of the sound one the largest."""
    rows = []
    canaries = GradientCanaries(CLAIM)
    for variant, parts in variants(canaries.expected_batch_size).items():
        audit = canaries if variant == "sound" else GradientCanaries(CLAIM, parts=parts)
        runs = [audit.run() for _ in range(RUN_REPETITIONS if variant == "sound" else BROKEN_RUNS)]
        chosen = max(runs) if variant == "sound" else min(runs)
        more = {"repetitions": len(runs), "alarms": sum(run.lower_bound > CLAIM.epsilon for run in runs)}
        rows.append(bound_row("gradient", variant, "one run, white-box", chosen.lower_bound, **guesses(chosen), **more))
        print(rows[-1], flush=True)
    return rows


def black_box() -> list[Row]:
    """One-run audits of releases: of every way of pre-training, and of `dreams` with each break."""
    with datasets.load("mnist").train.opened() as (images, labels):
        records = Records(images[:RECORDS], labels[:RECORDS], 10)
        public = Records(images[-RECORDS:], labels[-RECORDS:], 10)
    ways: dict[str, Pretraining] = {
        "dreams": Dreams(steps=200, sleep_steps=20),
        "public": Public(steps=200, sleep_steps=20, data=public),
        "none": NoPretraining(),
        "unprotected": Unprotected(epochs=10),
        "not-private": NotPrivate(epochs=20),
    }
    runs = [(f"--pretrain {name}", way, SOUND) for name, way in ways.items()]
    runs += [(name, ways["dreams"], parts) for name, parts in variants(BATCH).items() if name != "sound"]
    rows = []
    for variant, way, parts in runs:
        verdict = released_tells(records, way, parts)
        claims = {"claimed_epsilon": None} if isinstance(way, NotPrivate) else {}
        row = bound_row("black-box", variant, "one run, black-box", verdict.lower_bound, **guesses(verdict))
        rows.append({**row, **claims})
        print(rows[-1], flush=True)
    return rows


def released_tells(records: Records, way: Pretraining, parts: Parts) -> OneRunVerdict:
    """Trains on records and canaries, with the package's own `fit`, and guesses the coins from samples."""
    canaries = ImageCanaries.draw(records, CANARIES, 0)
    encoder = build_encoder(records.image_shape, LATENT, 10, WIDTH)
    decoder = build_decoder(records.image_shape, LATENT, 10, WIDTH, 1)
    prior = NormalPrior() if isinstance(way, NotPrivate) else GaussianPrior()
    model = DP2VAE(encoder, decoder, privacy=CLAIM, pretraining=way, prior=prior)
    model.mechanisms = parts.mechanisms(model.ledger, SystemEntropy())
    model.compile("dp-adam")
    with (
        mock.patch("tf_dp2vae.training.PoissonSource", parts.source),
        mock.patch("tf_dp2vae.model.make_engine", lambda *_: parts.engine()),
    ):
        model.fit(records.joined(*canaries), batch_size=BATCH, epochs=ROUNDS, steps_per_epoch=STEPS, verbose=0)
    sampler = model.sampler()
    labels = np.repeat(np.arange(10), SAMPLES // 10)
    images = np.concatenate([sampler.sample(SAMPLES // 10, label, 0).numpy() for label in range(10)])
    return one_run_verdict(canaries.scores((images, labels)), canaries.included, CLAIM.delta)


def stored() -> list[Row]:
    """The rows of `benchmarks/results/attack.json`."""
    rows = []
    for row in json.loads((RESULTS / "attack.json").read_text(encoding="utf-8")):
        if row["noise_left_out"]:
            variant = f"{row['noise_left_out']} without noise"
        elif row["epochs"]:
            seed = "known" if row["seed_known"] else "secret"
            rate = f"learning rate {row['pretrain_learning_rate']:g}"
            variant = f"--pretrain {row['pretrain']}, {row['epochs']} epochs, {rate}, seed {seed}"
        else:
            variant = f"--pretrain {row['pretrain']}"
        audit = "encoder matching" if row["pretrain"] == "unprotected" else "transcript"
        rows.append(bound_row("stored", variant, audit, row["lower_bound"], releases_per_side=row["releases_per_side"]))
    return rows


SECTIONS = {"implementation": implementation, "gradient": gradient, "black-box": black_box, "stored": stored}


def bounds_table(rows: list[Row]) -> str:
    """Markdown: all bounds."""
    lines = ["| variant | claimed ε | audit | ε is at least | guesses right | caught |", "|---|---|---|---|---|---|"]
    for row in rows:
        if row["lower_bound"] is None:
            continue
        claimed = "none" if row["claimed_epsilon"] is None else f"{row['claimed_epsilon']:g}"
        right = f"{row['right']}/{row['guesses']} of {row['canaries']}" if "right" in row else ""
        caught = "yes" if row["caught"] else "no"
        lines.append(
            f"| {row['variant']} | {claimed} | {row['audit']} | {row['lower_bound']:.2f} | {right} | {caught} |"
        )
    return "\n".join(lines)


def catches_table(rows: list[Row]) -> str:
    """Markdown: which break is caught by what."""
    lines = [
        "| variant | one run, white-box | one run, black-box | tests of the implementation that alarm | caught |",
        "|---|---|---|---|---|",
    ]
    for variant in variants(1):
        mine = [row for row in rows if row["variant"] == ("--pretrain dreams" if variant == "sound" else variant)]
        mine += [row for row in rows if row["variant"] == variant == "sound"]
        bounds = [
            next((f"{r['lower_bound']:.2f}" for r in mine if r["audit"] == f"one run, {box}-box"), "")
            for box in ("white", "black")
        ]
        alarms = ", ".join(r["audit"] for r in mine if r["section"] == "implementation" and r["caught"])
        caught = "yes" if any(row["caught"] for row in mine) else "no"
        lines.append(f"| {variant} | {' | '.join(bounds)} | {alarms or '–'} | {caught} |")
    return "\n".join(lines)


def alarms_table(rows: list[Row]) -> str:
    """Markdown: how often the sound mechanisms were accused."""
    lines = ["| audit of sound mechanisms | repetitions | alarms | p-values below 5 % |", "|---|---|---|---|"]
    for row in rows:
        if row["variant"] == "sound" and row.get("repetitions"):
            below = row.get("below_5_percent", "")
            lines.append(f"| {row['audit']} | {row['repetitions']} | {row['alarms']} | {below} |")
    return "\n".join(lines)


@dataclass(frozen=True)
class Flags:
    """The audits.

    Attributes:
      only: run this section - implementation, gradient, black-box or stored; '' runs none, and by default all are run.
    """

    only: str | None = None


def main() -> None:
    only = parse(Flags, __doc__).only
    rows: list[Row] = json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else []
    for name, run in SECTIONS.items():
        if only is None or only == name:
            rows = [row for row in rows if row["section"] != name] + run()
            FILE.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    for table in (bounds_table, catches_table, alarms_table):
        print(f"\n{table(rows)}")


if __name__ == "__main__":
    main()
