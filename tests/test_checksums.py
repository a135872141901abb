"""A damaged copy of a release is recognised by its checksums, and what is no damage passes."""

import subprocess

import pytest

from tf_dp2vae.checksums import verify_checksums, write_checksums
from tf_dp2vae.validation import InvalidInputError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "release" / "sampler").mkdir(parents=True)
    (tmp_path / "release" / "privacy.md").write_text("ε")
    (tmp_path / "release" / "sampler" / "saved_model.pb").write_bytes(b"\0" * 1000)
    write_checksums(tmp_path / "release")
    return tmp_path / "release"


def test_sound_release_passes_and_sha256sum_agrees(folder):
    verify_checksums(folder)
    subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=folder, check=True)
    (folder / "report.md").write_text("added later")
    verify_checksums(folder)


def change(folder):
    (folder / "sampler" / "saved_model.pb").write_bytes(b"\0" * 999 + b"\1")


def link_out(folder):
    (folder / "privacy.md").unlink()
    (folder / "privacy.md").symlink_to("/dev/zero")


def sums_as(content):
    return lambda folder: (folder / "SHA256SUMS").write_bytes(content)


def sums_as_folder(folder):
    (folder / "SHA256SUMS").unlink()
    (folder / "SHA256SUMS").mkdir()


@pytest.mark.parametrize(
    "damage, words",
    [
        (change, "saved_model.pb is damaged or was tampered with"),
        (lambda folder: (folder / "privacy.md").unlink(), "has lost privacy.md"),
        (link_out, "names no file of the release"),
        (sums_as(b"0  ../elsewhere\n"), "names no file of the release"),
        (sums_as(b"no sums\n"), "is damaged"),
        (sums_as(b"\xff\xfe"), "cannot be read"),
        (sums_as(b"0  a\0b\n"), "SHA256SUMS"),
        (sums_as_folder, "is no file"),
    ],
)
def test_damage_is_one_line(folder, damage, words):
    damage(folder)
    with pytest.raises(InvalidInputError, match=words) as refused:
        verify_checksums(folder)
    assert "\n" not in str(refused.value)
