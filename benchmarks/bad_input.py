"""The kinds of bad input that `fuzz.py` tries: each damages one thing that users hand in, and hands it in."""

from __future__ import annotations

import io
import json
import pickle
import random
import struct
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from bad_flags import evaluate_flags, flags
from fuzz_world import ACCEPTED, World
from odd_values import Trap, as_json, changed, damaged, odd_array

from tf_dp2vae import datasets
from tf_dp2vae.checksums import write_checksums
from tf_dp2vae.evaluation.real import real_images
from tf_dp2vae.evaluation.release import read_release
from tf_dp2vae.ledger import Ledger
from tf_dp2vae.saved import load


def npz(world: World, chance: random.Random) -> str:
    """A damaged archive, or a sound one of odd arrays, as --data."""
    if chance.random() < 0.4:
        content = damaged(world.data.read_bytes(), chance)
    else:
        arrays = dict(world.arrays)
        for name in chance.sample(sorted(arrays), chance.choice([1, 1, 2])):
            arrays[name] = odd_array(chance, 24, (8, 8))
            if chance.random() < 0.1:
                del arrays[name]
        file = io.BytesIO()
        np.savez_compressed(file, **arrays)
        content = file.getvalue()
        if chance.random() < 0.25:
            content = _odd_archive(chance)
    datasets.load_npz(world.file("data.npz", content), 3)
    return ACCEPTED


def _odd_archive(chance: random.Random) -> bytes:
    """Zip bombs, lying headers, members that are no arrays, duplicate and absurd names."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        way = chance.randrange(5)
        if way == 0:  # 64 MB of zeros in 64 KB, and a header that claims a petabyte of them
            shape = chance.choice([(2**50,), (2**20, 8, 8), (2**63 - 1, 2), (-1, 8, 8)])
            archive.writestr("x_train.npy", _npy_header("|u1", shape) + bytes(2**16 * chance.choice([1, 1000])))
        elif way == 1:
            archive.writestr("x_train.npy", chance.randbytes(500))
        elif way == 2:
            archive.writestr("x_train.npy", pickle.dumps(Trap()))
        elif way == 3:
            archive.writestr("../../x_train.npy", b"")
            archive.writestr("x_train.npy", b"\x93NUMPY\x09\x09")
        else:
            archive.writestr("x_train.npy", _npy_header("|O", (3,)) + pickle.dumps([Trap()] * 3))
    content = bytearray(file.getvalue())
    if way == 0 and chance.random() < 0.5:  # the directory lies about the size as well
        place = content.rfind(b"PK\x01\x02")
        content[place + 24 : place + 28] = struct.pack("<I", chance.choice([0, 10, 2**32 - 2]))
    return bytes(content)


def _npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def image_files(world: World, chance: random.Random) -> str:
    """A picture, a folder, a link or a device where an .npz belongs."""
    import matplotlib.image

    folder = Path(tempfile.mkdtemp(dir=world.folder))
    file = folder / chance.choice(["a.png", "a.npz", "ä☃.npz", "a.jpg", "a b.npz"])
    way = chance.randrange(6)
    if way == 0:
        picture = io.BytesIO()
        matplotlib.image.imsave(picture, np.zeros((8, 8)), format="png")
        file.write_bytes(damaged(picture.getvalue(), chance) if chance.random() < 0.5 else picture.getvalue())
    elif way == 1:
        file.mkdir()
    elif way == 2:
        file.symlink_to(
            chance.choice([world.data, file, folder / "nowhere", folder, Path("/dev/zero"), Path("/dev/full")])
        )
    elif way == 3:
        file = chance.choice(
            [Path("/dev/zero"), Path("/proc/self/mem"), Path("a" * 5000), Path("."), Path("\ud800.npz")]
        )
    elif way == 4:
        header = struct.pack(">IIII", 0x00000803, *(chance.choice([0, 28, 2**32 - 1]) for _ in range(3)))
        file.write_bytes(header + chance.randbytes(1000))
    else:
        file.write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", 2**31 - 1, 2**31 - 1) + b"\x08\0\0\0\0")
    datasets.load_npz(file, 3)
    return ACCEPTED


def labels_and_ids(world: World, chance: random.Random) -> str:
    """Odd labels, odd ids of persons, odd numbers of classes and of records a person."""
    arrays = dict(world.arrays)
    arrays[chance.choice(["y_train", "patient", "y_test"])] = odd_array(chance, chance.choice([24, 23, 6, 0]), ())
    if chance.random() < 0.3:
        arrays = {**world.arrays, "patient": world.arrays["patient"].astype(chance.choice(["u1", "i8", "U9", "S9"]))}
    file = io.BytesIO()
    np.savez(file, **arrays)
    column = chance.choice(["patient", "patient", "x_train", "nothing", "", "ε"])
    classes, most = chance.choice([3, 3, 3, 2, 0, -1, 10**9]), chance.choice([1, 2, 10**6, 0, -1])
    datasets.load_npz(world.file("data.npz", file.getvalue()), classes, column, most)
    return ACCEPTED


def configuration(world: World, chance: random.Random) -> str:
    """A damaged private/config.json, from which evaluate.py learns where the records are."""

    run = world.copy_of_run()
    file = run / "private" / "config.json"
    file.write_bytes(as_json(changed(json.loads(file.read_bytes()), chance), chance))
    real_images(run, world.release)
    return ACCEPTED


def statement(world: World, chance: random.Random) -> str:
    """A damaged privacy.json whose checksum is right."""
    run = world.copy_of_run()
    file = run / "release" / "privacy.json"
    file.write_bytes(as_json(changed(json.loads(file.read_bytes()), chance), chance))
    write_checksums(run / "release") if chance.random() < 0.8 else (run / "release" / "SHA256SUMS").unlink()
    import tensorflow as tf

    find, tf.saved_model.load = tf.saved_model.load, lambda _: world.release.sampler
    try:
        str(read_release(run))
    finally:
        tf.saved_model.load = find
    return ACCEPTED


def checksums(world: World, chance: random.Random) -> str:
    """A damaged SHA256SUMS, or damaged files under a sound one."""
    run = world.copy_of_run()
    sums = run / "release" / "SHA256SUMS"
    if chance.random() < 0.5:
        sums.write_bytes(damaged(sums.read_bytes(), chance))
    else:
        file = chance.choice(sorted(path for path in (run / "release").rglob("*") if path.is_file()))
        file.write_bytes(damaged(file.read_bytes(), chance))
    from tf_dp2vae.checksums import verify_checksums

    verify_checksums(run / "release")
    return ACCEPTED


def ledger(world: World, chance: random.Random) -> str:
    """A damaged ledger; one that is accepted must not have forgotten a charge, unless its end was cut off."""
    content = (world.run / "private" / "ledger.jsonl").read_bytes()
    lines = content.splitlines()
    way = chance.random()
    if way < 0.5:
        content = damaged(content, chance)
    elif way < 0.9:
        place = chance.randrange(len(lines))
        lines[place] = as_json(changed(json.loads(lines[place]), chance), chance)
        content = b"\n".join(lines) + b"\n"
    else:
        content = b"\n".join(chance.sample(lines, len(lines))) + b"\n"
    Ledger(world.file("ledger.jsonl", content), 24).close()
    return ACCEPTED


def checkpoint(world: World, chance: random.Random) -> str:
    """A damaged model.keras."""
    content = (world.run / "private" / "model.keras").read_bytes()
    content = damaged(content, chance) if chance.random() < 0.6 else _changed_model(content, chance)
    load(world.file("model.keras", content))
    return ACCEPTED


def _changed_model(content: bytes, chance: random.Random) -> bytes:
    """The archive with its configuration changed and sound checksums."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(file, "w") as again:
        for name in archive.namelist():
            part = archive.read(name)
            if name == "config.json":
                entry = json.loads(part)
                part = as_json({**entry, "config": changed(entry["config"], chance)}, chance)
            again.writestr(name, part if chance.random() < 0.95 else damaged(part, chance))
    return file.getvalue()


def saved_model(world: World, chance: random.Random) -> str:
    """A damaged SavedModel: mostly with its checksums, which tell; sometimes without, where TensorFlow has to."""
    run = world.copy_of_run()
    sampler = run / "release" / "sampler"
    file = chance.choice(sorted(path for path in sampler.rglob("*") if path.is_file()))
    way = chance.randrange(4)
    if way == 0:
        file.unlink()
    elif way == 1:
        file.unlink()
        file.symlink_to(chance.choice([file, Path("/dev/null"), world.data]))
    else:
        file.write_bytes(damaged(file.read_bytes(), chance))
    if chance.random() < 0.3:
        (run / "release" / "SHA256SUMS").unlink()
    read_release(run)
    return ACCEPTED


KINDS: dict[str, Callable[[World, random.Random], str]] = {
    "flags": flags,
    "flags of evaluate": evaluate_flags,
    "npz": npz,
    "image files": image_files,
    "labels and ids": labels_and_ids,
    "configuration": configuration,
    "privacy.json": statement,
    "checksums": checksums,
    "ledger": ledger,
    "checkpoint": checkpoint,
    "SavedModel": saved_model,
}
