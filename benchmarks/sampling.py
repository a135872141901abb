"""A million records from a released SavedModel: memory that does not grow, and processes that agree.

    python benchmarks/sampling.py                      # the default MNIST network, untrained: sampling costs the same
    python benchmarks/sampling.py --release runs/x/release --num 100000

Each sampling process is Python's isolated mode without this library, tensorflow-privacy and dp-accounting. Prints the table
and writes benchmarks/results/sampling.json.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import checkout  # noqa: F401 - makes the package importable from here

from tf_dp2vae.commands import parse

RESULTS = Path(__file__).parent / "results" / "sampling.json"
SAMPLE = """
import hashlib, json, os, resource, sys, time
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("tf_dp2vae", "tensorflow_privacy", "dp_accounting"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
import numpy as np
import tensorflow as tf

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

sampler = tf.saved_model.load(sys.argv[1])
num, chunk = int(sys.argv[2]), int(sys.argv[3])
sha, begun, memory = hashlib.sha256(), time.time(), []
for start in range(0, num, chunk):
    size, seed = min(chunk, num - start), start // chunk
    images, labels = (np.asarray(part) for part in sampler.sample_records(size, seed))
    sha.update(labels.tobytes() + (images * 255).round().astype(np.uint8).tobytes())
    memory.append(resident())
warm = min(20, len(memory) // 2)
print(json.dumps({
    "num": num,
    "seconds": time.time() - begun,
    "mib_after_warm_up": max(memory[: warm + 1]),
    "mib_at_most_later": max(memory[warm:]),
    "digest": sha.hexdigest(),
}))
"""


def processes(release: Path, num: int, chunk: int, together: int) -> list[dict]:
    """What that many processes report, which sample at the same time."""
    command = [sys.executable, "-I", "-c", SAMPLE, str(release / "sampler"), str(num), str(chunk)]
    with tempfile.TemporaryDirectory() as elsewhere:
        running = [
            subprocess.Popen(command, cwd=elsewhere, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            for _ in range(together)
        ]
        return [json.loads(process.communicate()[0].splitlines()[-1]) for process in running]


def untrained(folder: Path) -> Path:
    """A release of the default network for MNIST before any training."""
    from tf_dp2vae import DP2VAE, build_decoder, build_encoder
    from tf_dp2vae.flags import TrainFlags

    flags = TrainFlags()
    shape = (28, 28, 1)
    encoder = build_encoder(shape, flags.latent_dim, 10, flags.width)
    decoder = build_decoder(shape, flags.latent_dim, 10, flags.width, blocks=flags.recipe.blocks)
    DP2VAE(encoder, decoder).export_sampler(folder / "sampler")
    return folder


@dataclass(frozen=True)
class Flags:
    """Sampling.

    Attributes:
      release: folder with sampler/; by default one of the default network, untrained.
      num: records, in the single process.
      chunk: records a call.
      together: processes at once, a fiftieth of the records each.
    """

    release: Path | None = None
    num: int = 1_000_000
    chunk: int = 1000
    together: int = 3


def main() -> None:
    flags = parse(Flags, __doc__)
    with tempfile.TemporaryDirectory() as folder:
        release = flags.release or untrained(Path(folder))
        alone = processes(release, flags.num, flags.chunk, 1)
        short = max(flags.num // 50, 1)
        several = processes(release, short, flags.chunk, flags.together)
        reference = processes(release, short, flags.chunk, 1)
    rows = [{"processes": 1, **alone[0]}] + [{"processes": flags.together, **row} for row in several]
    agree = {row["digest"] for row in several} == {reference[0]["digest"]}
    print("| processes | records each | seconds | records a second | MiB after warm-up | MiB later, at most |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        speed = row["num"] / row["seconds"]
        print(
            f"| {row['processes']} | {row['num']:,} | {row['seconds']:.0f} | {speed:,.0f} | "
            f"{row['mib_after_warm_up']:.0f} | {row['mib_at_most_later']:.0f} |"
        )
    print(f"\nProcesses at once and one alone give the same records for the same seeds: {'yes' if agree else 'NO'}")
    RESULTS.write_text(json.dumps({"rows": rows, "processes_agree": agree}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
