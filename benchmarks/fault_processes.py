"""One training process of `faults.py`: forked, watched by a witness, killed at a moment of choice, resumed."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from witness import Witness

import train
from tf_dp2vae import accounting, planning
from tf_dp2vae.flags import TrainFlags

STEPS, ROUNDS, RECORDS = 12, 3, 2000
TRAINING = (
    f"--steps {STEPS} --rounds {ROUNDS} --batch-size 64 --latent-dim 2 --width 2 --physical-batch-size 128 "
    "--pretrain-steps 8 --sleep-steps 2 --refine-steps 2 --epsilon 2"
).split()


@dataclass
class Ended:
    """How a process ended and what its witness said."""

    code: int
    error: str
    told: list[str] = field(default_factory=list)

    @property
    def place(self) -> str:
        """Where the run was."""
        return ([line[3:] for line in self.told if line.startswith("at ")] or ["start"])[-1]


def run(
    arguments: list[str],
    folder: Path,
    kill_when: Callable[[bytes], bool] | None = None,
    delay: float = 0.0,
    before: Callable[[], None] | None = None,
) -> Ended:
    """`train.py` in a process of its own, forked so that TensorFlow is imported once.

    Args:
      arguments: of train.py.
      folder: where its output goes.
      kill_when: kills it once this is true of what its witness told; None lets it end.
      delay: seconds between the event and the kill.
      before: done in the process before it begins.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _become_training(arguments, folder, writing, before)
    os.close(writing)
    told = _listen(reading, child, kill_when, delay)
    os.close(reading)
    _, status = os.waitpid(child, 0)
    return Ended(os.waitstatus_to_exitcode(status), (folder / "stderr").read_text(errors="replace"), told)


def _become_training(arguments: list[str], folder: Path, pipe: int, before: Callable[[], None] | None) -> None:
    code = 1
    try:
        for stream, name in ((1, "stdout"), (2, "stderr")):
            opened = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            os.dup2(opened, stream)
        Witness(pipe).install()
        if before is not None:
            before()
        sys.argv = ["train.py", *arguments]
        train.main()
        code = 0
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _listen(pipe: int, child: int, kill_when: Callable[[bytes], bool] | None, delay: float) -> list[str]:
    content, killed = b"", False
    while True:
        if not killed and kill_when is not None and kill_when(content):
            time.sleep(delay)
            os.kill(child, signal.SIGKILL)
            killed = True
        select.select([pipe], [], [])
        part = os.read(pipe, 65536)
        if not part:
            return content.decode().splitlines()
        content += part


def refused(ended: Ended) -> bool:
    """One line, exit code 2."""
    lines = [line for line in ended.error.splitlines() if line.strip()]
    return ended.code == 2 and len(lines) == 1 and lines[0].startswith("train.py: ")


def resume(path: Path, folder: Path, **how) -> Ended:
    """`train.py --resume` of the run."""
    return run(["--resume", str(path)], folder, **how)


def warm_up() -> None:
    """Does the costly sums over events once, before the trainings are forked; none of them starts TensorFlow's runtime."""
    calibrate, known = planning.plan, {}

    def plan(*arguments):
        key = repr(arguments)
        if key not in known:
            known[key] = calibrate(*arguments)
        return known[key]

    planning.plan = plan
    flags = TrainFlags()
    shares = {
        accounting.CLASS_STATISTICS: flags.statistics_share,
        accounting.DREAM_MOMENTS: flags.moments_share,
        accounting.LATENT_MOMENTS: flags.prior_share,
        accounting.FEATURE_MEANS: flags.refine_share,
    }
    planned = plan(accounting.Privacy(epsilon=2.0), 64 / RECORDS, STEPS, shares, ())
    released = list(planned.releases)
    for before in (
        [],
        released[:1],
        released[:2],
        *([*released[:2], replace(planned.step, count=k)] for k in range(1, STEPS + 1)),
    ):
        accounting.epsilon(before, 1e-5)
    for accountant in accounting.ACCOUNTANTS:
        accounting.epsilon([*released[:2], replace(planned.step, count=STEPS), *released[2:]], 1e-5, accountant)
