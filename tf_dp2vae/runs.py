"""A run's folder: what may be published and what never may, apart on disk.

    runs/<name>/release/   sampler/, privacy.json, privacy.md, samples.png, SHA256SUMS
    runs/<name>/private/   README.md, ledger.jsonl, config.json, model.keras, history.csv, figures; mode 0700

The private side exists from the first charge on; the release appears whole, at the end, or not at all. While a run is
under way, `private/` also holds `checkpoints` and `answers`, from which `train.py --resume runs/<name>` goes on.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tf_dp2vae.checkpoints import Checkpoints
from tf_dp2vae.checksums import write_checksums
from tf_dp2vae.durable import (
    WAY_OUT,
    DamagedFileError,
    StorageError,
    is_storage_fault,
    locked,
    sync_folder,
    sync_tree,
    write_atomically,
)
from tf_dp2vae.ledger import Ledger
from tf_dp2vae.statement import NOT_PRIVATE
from tf_dp2vae.validation import InvalidInputError, check, check_path, check_readable_by_tensorflow

if TYPE_CHECKING:
    from tf_dp2vae.model import DP2VAE
    from tf_dp2vae.records import Records

_PRIVATE_README = """# Do not publish this folder

What lies here was computed from the records without noise, or next to it: losses, figures of training, the whole model
with its encoder, the ledger of the run. The guarantee in `../release/privacy.md` does not cover it. Keep it as you keep
the records themselves.
"""
PRIVATE_MODE = 0o700
CONFIG = "config.json"
_LEDGER = "ledger.jsonl"


def read_config(private: Path) -> dict[str, Any]:
    """The flags that a run was started with, as they stand in its private folder; empty where there are none.

    Raises:
      DamagedFileError: the file cannot be read.
    """
    file = private / CONFIG
    try:
        if not file.is_file():
            return {}
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("no table of flags")
    except OSError as error:
        raise DamagedFileError(f"{file} cannot be read ({error.strerror}): give access, or {WAY_OUT}.") from error
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"{file} is damaged ({' '.join(str(error).split())[:200]}): {WAY_OUT}.") from error
    return found


def ledger_file(private: Path) -> Path:
    """Where the run's charges stand: on a shared ledger, or in its own folder.

    Raises:
      DamagedFileError: the run's configuration cannot be read.
    """
    shared = read_config(private).get("ledger")
    return Path(shared) if isinstance(shared, str) else private / _LEDGER


class RunFolder:
    """The folder of one run. Creating the object creates nothing on disk; `opened` does."""

    def __init__(
        self,
        root: Path,
        name: str,
        resumed: bool = False,
        checkpoint_seconds: float = 30.0,
        insecure_seed: int | None = None,
    ):
        """Args: the folder of all runs; the run's name; whether a killed run goes on; seconds between checkpoints; the seed
          of private randomness, with which no killed run goes on.

        Raises:
          InvalidInputError: the name is no plain folder name, TensorFlow could not read there, or the folder holds something
            already (or, to be resumed, nothing, or a finished run).
        """
        check(
            name not in ("", ".", "..") and Path(name).name == name,
            f"name={name!r} must be a plain folder name without slashes.",
        )
        self.path = root / name
        check_readable_by_tensorflow("run folder (--name, --runs)", Path(os.path.abspath(self.path)))
        self.release, self.private = self.path / "release", self.path / "private"
        try:
            exists = self.path.exists()
        except OSError as error:
            raise InvalidInputError(
                f"run folder {self.path} cannot be used ({error.strerror}): choose another --name, or other --runs."
            ) from error
        self._resumed, self._seeded = resumed, insecure_seed is not None
        self.checkpoints = Checkpoints(self.private, checkpoint_seconds)
        if resumed:
            check(self.private.is_dir(), f"run folder {self.path} holds no run to resume.")
            check(not self.release.exists(), f"run {self.path} is finished: its release is {self.release}.")
            check(
                not self._seeded,
                f"insecure_seed={insecure_seed} would draw the noise of the run's beginning once more: {self.way_on}.",
            )
        else:
            check(
                not exists,
                f"run folder {self.path} exists already: choose another --name, go on with --resume {self.path}, or "
                "remove it.",
            )

    @contextmanager
    def opened(self, num_records: int, shared: Path | None, config: dict[str, Any] | None = None) -> Iterator[Ledger]:
        """Lends the ledger: the shared one where given, else the run's own. Nobody else can open the run meanwhile.

        A new run's private side is created, and its `config` written. A refusal before the first charge and the first step
        leaves nothing of it behind; after that, the ledger's trace must stay, and what was trained may go on.

        Raises:
          InvalidInputError: the folder is in use by another process, or the disk is full or read-only.
          KeyboardInterrupt: as it came, with words for how to go on.
        """
        with self._one_line_for_full_disks(), self._way_on_for_interruptions():
            opened = self._resuming(num_records, shared) if self._resumed else self._new(num_records, shared, config)
            with opened as ledger:
                yield ledger

    @contextmanager
    def _resuming(self, num_records: int, shared: Path | None) -> Iterator[Ledger]:
        with locked(self.private):
            check(not self.release.exists(), f"run {self.path} is finished: its release is {self.release}.")
            file = shared or self.private / _LEDGER
            check(file.is_file(), f"the run's ledger {file} is missing, so nothing says what was spent: {WAY_OUT}.")
            with Ledger(file, num_records, shared=shared is not None) as ledger:
                yield ledger

    @contextmanager
    def _new(self, num_records: int, shared: Path | None, config: dict[str, Any] | None) -> Iterator[Ledger]:
        if shared is not None:
            check_path("ledger", shared)
        new_root, new_ledger = not self.path.parent.exists(), shared is not None and not shared.exists()
        try:
            self.private.mkdir(parents=True, mode=PRIVATE_MODE)
        except OSError as error:
            if new_root and self.path.parent.is_dir():
                self.path.parent.rmdir()
            raise InvalidInputError(
                f"run folder {self.path} cannot be created ({error.strerror}): give access there, or choose other --runs."
            ) from error
        self.private.chmod(PRIVATE_MODE)
        ledger, before = None, 0
        try:
            with locked(self.private):
                (self.private / "README.md").write_text(_PRIVATE_README, encoding="utf-8")
                if config is not None:
                    write_atomically(self.private / CONFIG, (json.dumps(config, indent=2, default=str) + "\n").encode())
                ledger = Ledger(shared or self.private / _LEDGER, num_records, shared=shared is not None)
                before = len(ledger.charges)
                yield ledger
        except (InvalidInputError, OSError, KeyboardInterrupt):
            charged = ledger is not None and len(ledger.charges) > before
            if not charged and not self.checkpoints.progress.begun:
                shutil.rmtree(self.path, ignore_errors=True)
                if new_root and not list(self.path.parent.iterdir()):
                    self.path.parent.rmdir()
                # Held by this run alone, or else it is another one's that began at the same moment.
                if new_ledger and shared is not None and ledger is not None and not ledger.charges:
                    shared.unlink(missing_ok=True)
            raise
        finally:
            if ledger is not None:
                ledger.close()

    @property
    def way_on(self) -> str:
        """What to do when the run was interrupted."""
        if self._seeded:
            return f"remove {self.path} and start again, for a run with --insecure-seed is not resumed"
        return f"go on with python train.py --resume {shlex.quote(str(self.path))}"

    @contextmanager
    def _way_on_for_interruptions(self) -> Iterator[None]:
        try:
            yield
        except (KeyboardInterrupt, BrokenPipeError) as end:
            if self.release.exists():
                words = f"the run is finished: its release is {self.release}"
            elif self.path.exists():
                words = self.way_on
            else:
                words = "nothing was charged or trained, and nothing is left; start again"
            why = "interrupted" if isinstance(end, KeyboardInterrupt) else "nobody reads its output any more"
            raise type(end)(f"{why}: {words}") from None

    @contextmanager
    def _one_line_for_full_disks(self) -> Iterator[None]:
        """Whatever library met it, a disk that takes no more is one refusal."""
        try:
            yield
        except Exception as error:
            if isinstance(error, StorageError):
                reason = str(error)
            elif isinstance(error, InvalidInputError) or not is_storage_fault(error):
                raise
            else:
                shown = " ".join(str(error).split())[:200]
                reason = f"something could not be written ({shown}): make room or give access."
            way_out = f"Then {self.way_on}." if self.path.exists() else "Then start again."
            raise StorageError(f"run {self.path} stopped: {reason} {way_out}") from error

    def write_private(self, model: DP2VAE) -> None:
        """Everything that stays at home."""
        model.save(self.private / "model.keras")

    def write_release(self, model: DP2VAE, records: Records | None = None) -> None:
        """Sampler, statement and sample picture: functions of mechanism answers and public randomness alone.

        The folder appears whole, by one rename of what is on the device. Then nothing is left to resume.

        Args:
          model: a trained one.
          records: what it was trained on, to look whether any of them stands in the release.

        Raises:
          ReleaseRefusedError: something stands in the release that must not; then there is none.
        """
        from tf_dp2vae.figures import sample_grid
        from tf_dp2vae.release_scan import ReleaseRefusedError, refuse_leaks, secrets_of

        unfinished = self.path / ".release.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        statement = model.privacy_statement()
        model.export_sampler(unfinished / "sampler")
        (unfinished / "privacy.json").write_text(statement.dumps(), encoding="utf-8")
        (unfinished / "privacy.md").write_text(str(statement), encoding="utf-8")
        if not statement.private:
            (unfinished / "NOT-PRIVATE.md").write_text(f"**{NOT_PRIVATE}**\n", encoding="utf-8")
        sample_grid(unfinished / "sampler", unfinished / "samples.png", model.num_classes)
        write_checksums(unfinished)
        try:
            refuse_leaks(unfinished, secrets_of(model, records, self.private))
        except ReleaseRefusedError:
            shutil.rmtree(unfinished)
            raise
        sync_tree(unfinished)
        os.replace(unfinished, self.release)
        sync_folder(self.path)
        for kept in ("answers", "checkpoints"):
            shutil.rmtree(self.private / kept, ignore_errors=True)
