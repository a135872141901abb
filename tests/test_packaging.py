"""What an installed package asks for is what `requirements.txt` pins, but for the suite's own tools.

And what the benchmarks' scripts import from it exists: no other test runs them all.
"""

import ast
import importlib.util
import os
import re
import subprocess
import sys
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


def _names_taken_from_the_package():
    """(script, module, name) for each import in the benchmarks."""
    for script in sorted((ROOT / "benchmarks").rglob("*.py")):
        for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "tf_dp2vae":
                yield from ((script.name, node.module, name.name) for name in node.names)


def test_benchmarks_import_what_there_is():
    missing = []
    for script, module, name in _names_taken_from_the_package():
        found = importlib.import_module(module)
        if not hasattr(found, name) and importlib.util.find_spec(f"{module}.{name}") is None:
            missing.append(f"{script}: {module}.{name}")
    assert not missing


def test_another_backend_is_refused_by_name_and_light_names_start_no_tensorflow():
    light = "import sys; from tf_dp2vae import InvalidInputError; print('tensorflow' in sys.modules)"
    for backend, code, words in (("tensorflow", 0, "False\n"), ("jax", 1, "KERAS_BACKEND=jax: set it to tensorflow.")):
        environment = {**os.environ, "KERAS_BACKEND": backend}
        ended = subprocess.run([sys.executable, "-c", light], capture_output=True, text=True, cwd=ROOT, env=environment)
        assert ended.returncode == code and words in ended.stdout + ended.stderr
