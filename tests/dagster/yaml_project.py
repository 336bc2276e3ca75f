"""A fresh project as `create-dagster project` makes one, without its environment: the tests' own has all of it."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import dagster as dg
from click.testing import CliRunner, Result
from dagster_dg_cli.cli import cli

_DEFINITIONS = """
from pathlib import Path

from dagster import definitions, load_from_defs_folder


@definitions
def defs():
    return load_from_defs_folder(path_within_project=Path(__file__).parent)
"""
_PYPROJECT = """
[project]
name = "{name}"
requires-python = ">=3.10,<3.15"
version = "0.1.0"
dependencies = ["dagster"]

[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[tool.hatch.build.targets.wheel]
force-include = {{ "pyproject.toml" = "pyproject.toml" }}

[tool.dg]
directory_type = "project"

[tool.dg.project]
root_module = "{name}"
registry_modules = [
    "{name}.components.*",
]
"""
_NUMBERS = itertools.count()


class YamlProject:
    """A project with the layout of Dagster's scaffold, which Python can import while the context is open."""

    def __init__(self, folder: Path) -> None:
        self.name = f"lake_{next(_NUMBERS)}"  # a package of its own: Python imports each name once
        self.root = folder / self.name
        self.package = self.root / "src" / self.name
        self.defs_folder = self.package / "defs"
        self.defs_folder.mkdir(parents=True)
        for package in (self.package, self.defs_folder):
            (package / "__init__.py").touch()
        (self.package / "definitions.py").write_text(_DEFINITIONS)
        (self.root / "pyproject.toml").write_text(_PYPROJECT.format(name=self.name))
        self._home = folder / f"{self.name}_home"
        self._home.mkdir()
        (self._home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")

    def __enter__(self) -> YamlProject:
        sys.path.insert(0, str(self.package.parent))
        return self

    def __exit__(self, *_: object) -> None:
        sys.path.remove(str(self.package.parent))

    def write(self, text: str, *, folder: str = "lake") -> Path:
        """Write a `defs.yaml` into a folder of the project's definitions."""
        path = self.defs_folder / folder / "defs.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def load(self) -> dg.Definitions:
        """The definitions of the whole project."""
        return dg.load_from_defs_folder(path_within_project=self.package)

    @property
    def _environment(self) -> dict[str, str]:
        return {"DAGSTER_HOME": str(self._home), "PYTHONPATH": str(self.package.parent)}

    def command(self, *arguments: str) -> str:
        """What `dg` prints, run as people run it; it must succeed."""
        done = subprocess.run(
            [str(Path(sys.executable).with_name("dg")), *arguments],
            cwd=self.root,
            env=os.environ | self._environment,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def command_here(self, *arguments: str) -> Result:
        """What `dg` prints and how it ends, without a process of its own, which would cost seconds."""
        before = Path.cwd()
        os.chdir(self.root)
        try:
            return CliRunner(env=self._environment).invoke(cli, arguments)
        finally:
            os.chdir(before)
