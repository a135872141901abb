"""Reading a model that was saved, from a file that somebody else may have touched."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tf_dp2vae.validation import InvalidInputError, check, first_line

if TYPE_CHECKING:
    from tf_dp2vae.model import DP2VAE

_MOST_BYTES = 2**31


def load(path: str | os.PathLike[str]) -> DP2VAE:
    """The model that `model.save(path)` wrote, with its ledger and its guarantee.

    Checks the archive's own checksums and its unpacked size before anything is read from it; no Python code in it runs
    (Keras's safe mode).

    Args:
      path: a .keras file.

    Raises:
      InvalidInputError: the file is missing, damaged, too large or holds another kind of model.
    """
    import keras

    from tf_dp2vae.model import DP2VAE

    file = Path(path)
    try:
        check(file.is_file(), f"model file {file} does not exist: name a .keras file that does.")
        with zipfile.ZipFile(file) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
            check(
                unpacked <= _MOST_BYTES,
                f"model file {file} unpacks to {unpacked:,} bytes, more than {_MOST_BYTES:,}: it is no model of ours.",
            )
            damaged = archive.testzip()
        check(damaged is None, f"model file {file} is damaged in {damaged}: save the model again.")
        model: Any = keras.saving.load_model(file)
    except InvalidInputError:
        raise
    except Exception as error:  # a damaged file raises whatever the zip, JSON, HDF5 and Keras readers raise
        raise InvalidInputError(
            f"model file {file} cannot be read ({first_line(error)}): save the model again."
        ) from error
    check(isinstance(model, DP2VAE), f"model file {file} holds a {type(model).__name__}: a DP2VAE is needed.")
    return model
