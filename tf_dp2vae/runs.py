"""A run's folder: what may be published and what never may, apart on disk.

    runs/<name>/release/   sampler/, privacy.json, privacy.md, samples.png
    runs/<name>/private/   README.md, ledger.jsonl, config.json, model.keras, history.csv, figures; mode 0700

The private side exists from the first charge on; the release appears whole, at the end, or not at all.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tf_dp2vae.ledger import Ledger
from tf_dp2vae.statement import NOT_PRIVATE
from tf_dp2vae.validation import InvalidInputError, check

if TYPE_CHECKING:
    from tf_dp2vae.model import DP2VAE

_PRIVATE_README = """# Do not publish this folder

What lies here was computed from the records without noise, or next to it: losses, figures of training, the whole model
with its encoder, the ledger of the run. The guarantee in `../release/privacy.md` does not cover it. Keep it as you keep
the records themselves.
"""
PRIVATE_MODE = 0o700


class RunFolder:
    """The folder of one run. Creating the object creates nothing on disk; `opened` does."""

    def __init__(self, root: Path, name: str):
        """Args: the folder of all runs; the run's name.

        Raises:
          InvalidInputError: the name is no plain folder name, or the folder holds something already.
        """
        check(
            name not in ("", ".", "..") and Path(name).name == name,
            f"name={name!r} must be a plain folder name without slashes.",
        )
        self.path = root / name
        self.release, self.private = self.path / "release", self.path / "private"
        try:
            exists = self.path.exists()
        except OSError as error:
            raise InvalidInputError(f"run folder {self.path} cannot be used ({error.strerror}).") from error
        check(not exists, f"run folder {self.path} exists already: choose another --name or remove it.")

    @contextmanager
    def opened(self, num_records: int, shared: Path | None) -> Iterator[Ledger]:
        """Creates the private side and lends the ledger: the shared one where given, else the run's own.

        A refusal before the first charge leaves nothing behind; after it, the ledger's trace must stay.
        """
        new_root, new_ledger = not self.path.parent.exists(), shared is not None and not shared.exists()
        try:
            self.private.mkdir(parents=True, mode=PRIVATE_MODE)
        except OSError as error:
            if new_root and self.path.parent.is_dir():
                self.path.parent.rmdir()
            raise InvalidInputError(f"run folder {self.path} cannot be created ({error.strerror}).") from error
        self.private.chmod(PRIVATE_MODE)
        (self.private / "README.md").write_text(_PRIVATE_README, encoding="utf-8")
        ledger, held = None, ()
        try:
            own = self.private / "ledger.jsonl"
            ledger = Ledger(shared or own, num_records, shared=shared is not None)
            held = ledger.events
            yield ledger
        except (InvalidInputError, KeyboardInterrupt):
            if ledger is None or ledger.events == held:
                shutil.rmtree(self.path)
                if new_root:
                    self.path.parent.rmdir()
                if new_ledger and shared is not None:
                    shared.unlink(missing_ok=True)
            raise
        finally:
            if ledger is not None:
                ledger.close()

    def write_private(self, model: DP2VAE, config: dict[str, Any]) -> None:
        """Everything that stays at home."""
        (self.private / "config.json").write_text(json.dumps(config, indent=2, default=str) + "\n", encoding="utf-8")
        model.save(self.private / "model.keras")

    def write_release(self, model: DP2VAE, figure_seed: int = 0) -> None:
        """Sampler, statement and sample picture: functions of mechanism answers and public randomness alone."""
        from tf_dp2vae.figures import sample_grid

        unfinished = self.path / ".release.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        statement = model.privacy_statement()
        model.export_sampler(unfinished / "sampler")
        (unfinished / "privacy.json").write_text(statement.dumps(), encoding="utf-8")
        (unfinished / "privacy.md").write_text(str(statement), encoding="utf-8")
        if not statement.private:
            (unfinished / "NOT-PRIVATE.md").write_text(f"**{NOT_PRIVATE}**\n", encoding="utf-8")
        sample_grid(unfinished / "sampler", unfinished / "samples.png", model.num_classes, figure_seed)
        os.replace(unfinished, self.release)
