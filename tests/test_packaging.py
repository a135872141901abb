"""What an installed package asks for is what `requirements.txt` pins, but for the suite's own tools."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
_ONLY_FOR_TESTS = ("pytest", "hypothesis", "pytest-xdist")


def test_the_package_depends_on_what_requirements_pin():
    lines = [line.partition("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    pins = [line.replace('"', "'") for line in lines if line and not line.startswith("-")]
    declared = re.search(r"^dependencies = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL)
    assert declared is not None
    asked = re.findall(r'"([^"]+)"', declared[1])
    assert asked == [pin for pin in pins if pin.partition("==")[0] not in _ONLY_FOR_TESTS]


def test_every_package_of_the_sources_is_installed():
    named = re.search(r"^packages = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert named is not None
    found = {".".join(file.parent.relative_to(ROOT).parts) for file in (ROOT / "tf_dp2vae").rglob("__init__.py")}
    assert set(re.findall(r'"([^"]+)"', named[1])) == found
