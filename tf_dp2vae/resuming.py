"""The flags of a training, new or resumed: a run goes on with what it was started with."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path

from tf_dp2vae.accounting import Privacy
from tf_dp2vae.commands import parse
from tf_dp2vae.durable import WAY_OUT, DamagedFileError
from tf_dp2vae.flags import TrainFlags
from tf_dp2vae.runs import CONFIG, RunFolder, read_config
from tf_dp2vae.validation import check

_MAY_CHANGE = ("resume", "checkpoint_seconds")
_FILES = ("data", "public_data", "ledger", "runs", "resume")


def parse_training(description: str | None, arguments: list[str] | None = None) -> TrainFlags:
    """The flags of the command line; with --resume those of the run, which no other flag may contradict.

    Raises:
      InvalidInputError: there is no such run, or flags differ from the run's; all differences are named.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--resume", nargs="?", type=Path)
    run = finder.parse_known_args(arguments)[0].resume
    if run is None:
        return _absolute(parse(TrainFlags, description, arguments))
    before = read_flags(run)
    flags = _absolute(parse(TrainFlags, description, arguments, before))
    given, kept = asdict(flags), asdict(before)
    given, kept = ({**one.pop("privacy"), **one} for one in (given, kept))
    differences = [
        f"{name} was {kept[name]}, is now {given[name]}"
        for name in kept
        if given[name] != kept[name] and name not in _MAY_CHANGE
    ]
    check(
        not differences,
        f"run {run} cannot go on under other terms ({'; '.join(differences)}): leave these flags out, or start a new run.",
    )
    return flags


def read_flags(run: Path) -> TrainFlags:
    """The flags that the run was started with.

    Raises:
      InvalidInputError: there is no such run, or its configuration is damaged.
    """
    file = run / "private" / CONFIG
    try:
        check(run.is_dir(), f"--resume {run}: there is no such run; name the folder that train.py said, runs/<name>.")
        check(file.is_file(), f"{file} is missing, so nothing says how to go on: {WAY_OUT}.")
    except OSError as error:
        raise DamagedFileError(f"{file} cannot be read ({error}): {WAY_OUT}.") from error
    config = read_config(run / "private")
    try:
        unknown = config.keys() ^ {field.name for field in fields(TrainFlags)}
        if unknown:
            raise ValueError(f"flags {', '.join(sorted(unknown))} are unknown or missing")
        files = {name: None if config[name] is None else Path(config[name]) for name in _FILES}
        return TrainFlags(**{**config, **files, "privacy": Privacy(**config["privacy"])})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DamagedFileError(f"{file} is damaged ({' '.join(str(error).split())[:200]}): {WAY_OUT}.") from error


def run_folder(flags: TrainFlags, dataset: str) -> RunFolder:
    """The folder of a new run, or of the one that is resumed."""
    settings = {"checkpoint_seconds": flags.checkpoint_seconds, "insecure_seed": flags.insecure_seed}
    if flags.resume is not None:
        return RunFolder(flags.resume.parent, flags.resume.name, resumed=True, **settings)
    return RunFolder(flags.runs, flags.run_name(dataset), **settings)


def _absolute(flags: TrainFlags) -> TrainFlags:
    """Files by absolute paths, so that a run can be resumed from another folder."""
    paths = {name: getattr(flags, name) for name in _FILES if name != "runs"}
    return replace(flags, **{name: path.absolute() for name, path in paths.items() if path is not None})
