"""Promises of the repository as a whole: what importing costs, what is public, what is shipped."""

from __future__ import annotations

import ast
import importlib
import inspect
import pickle
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import snapshot_assets
from snapshot_assets import errors, failpoints
from snapshot_assets.errors import SnapshotAssetsError

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "snapshot_assets"
HEAVY = {"adbc_driver_manager", "boto3", "dagster", "dagster_aws", "duckdb", "obstore", "pandas", "pyarrow", "sqlite3"}


def fresh(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout


def loaded_after(code: str) -> set[str]:
    return set(fresh(f"{code}\nimport sys; print(*sorted(sys.modules))").split())


def best_seconds(code: str) -> float:
    """The least processor time of five fresh interpreters: what the code costs on a machine with nothing else to do."""
    timed = f"import time; start = time.process_time()\n{code}\nprint(time.process_time() - start)"
    return min(float(fresh(timed)) for _ in range(5))


def test_importing_the_package_loads_no_heavy_library() -> None:
    assert not loaded_after("import snapshot_assets") & HEAVY


def test_importing_the_foundations_loads_no_heavy_library() -> None:
    modules = [
        "errors",
        "ids",
        "clock",
        "failpoints",
        *(f"model.{path.stem}" for path in (PACKAGE / "model").glob("*.py")),
    ]
    code = "\n".join(f"import snapshot_assets.{module.removesuffix('.__init__')}" for module in modules)
    assert not loaded_after(code) & HEAVY


def test_no_room_of_the_core_loads_dagster() -> None:
    rooms = ["store", "engines", "content", "publish", "reader", "maintenance", "serve", "cli"]
    files = [
        path for room in rooms for path in (PACKAGE / room).rglob("*.py") if path.stem not in {"__init__", "__main__"}
    ]
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files if not path.stem.startswith("_")
    ]
    assert len(modules) > 20
    assert not loaded_after("\n".join(f"import {module}" for module in modules)) & {"dagster", "dagster_aws"}


def test_importing_the_package_takes_under_150_ms() -> None:
    assert best_seconds("import snapshot_assets") < 0.150


def test_the_public_names_are_these_and_all_of_them_load() -> None:
    assert snapshot_assets.__all__ == [
        "Dataset",
        "FormatCheck",
        "Generation",
        "Head",
        "IndexHandoff",
        "Maintenance",
        "PublishResult",
        "Publisher",
        "ReaderSettings",
        "RefreshResult",
        "SnapshotAssetsError",
        "SnapshotReader",
        "SnapshotStore",
        "StreamHandoff",
    ]
    for name in snapshot_assets.__all__:
        assert getattr(snapshot_assets, name).__name__ == name
        assert name in dir(snapshot_assets)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = snapshot_assets.Nothing


def test_public_names_have_docstrings() -> None:
    for name in snapshot_assets.__all__:
        public = getattr(snapshot_assets, name)
        assert inspect.getdoc(public), name
        for member, value in vars(public).items():
            if inspect.isfunction(value) and not member.startswith("_"):
                assert inspect.getdoc(value), f"{name}.{member}"


# --- errors


def error_classes() -> list[type[SnapshotAssetsError]]:
    return [getattr(errors, name) for name in errors.__all__]


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes() -> None:
    drawn: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"( {4,})([A-Z]\w+)(  .*)?$", line)
        if not found:
            continue
        depth, name = len(found[1]), found[2]
        above = [item for item in above if item[0] < depth]
        if above:
            drawn[name] = above[-1][1]
        above.append((depth, name))
    real = {cls.__name__: cls.__bases__[0].__name__ for cls in error_classes() if cls is not SnapshotAssetsError}
    assert drawn == real


def test_every_error_class_is_listed() -> None:
    defined = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    assert sorted(cls.__name__ for cls in defined) == errors.__all__


def test_every_error_that_is_raised_says_what_to_do() -> None:
    categories = {base for cls in error_classes() for base in cls.__mro__[1:]}
    assert [cls.__name__ for cls in error_classes() if cls not in categories and not cls.default_hint] == []


@pytest.mark.parametrize("cls", error_classes(), ids=lambda cls: cls.__name__)
def test_errors_survive_pickling_with_all_that_they_carry(cls: type[SnapshotAssetsError]) -> None:
    error = cls("what happened", hint="what to do", dataset="orders", operation_id="01JD0000000000000000000000")
    revived = pickle.loads(pickle.dumps(error))
    assert type(revived) is cls
    assert revived.to_json() == error.to_json()
    assert str(revived) == "what happened"
    assert revived.kind == cls.__name__


# --- failpoints


def failpoint_names() -> list[str]:
    return [name for name in failpoints.__all__ if isinstance(getattr(failpoints, name), str)]


def nodes_in(folder: Path, *, but: Path | None = None) -> Iterator[ast.AST]:
    for path in folder.rglob("*.py"):
        if path != but:
            yield from ast.walk(ast.parse(path.read_text()))


def used_names(nodes: Iterable[ast.AST]) -> set[str]:
    """Every name and attribute that code uses, imports aside."""
    return {node.id for node in nodes if isinstance(node, ast.Name)} | {
        node.attr for node in nodes if isinstance(node, ast.Attribute)
    }


def asked_prefixes(nodes: Iterable[ast.AST]) -> set[str]:
    """The prefixes by which code takes all constants of a kind: `name.startswith("PUBLISH_")`."""
    return {
        str(node.args[0].value)
        for node in nodes
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "startswith"
        and isinstance(node.args[0], ast.Constant)
    }


def test_every_failpoint_is_hit_by_the_code_and_armed_by_a_test() -> None:
    assert len(failpoint_names()) > 10
    hit = used_names(list(nodes_in(PACKAGE, but=PACKAGE / "failpoints.py")))
    tests = list(nodes_in(ROOT / "tests", but=Path(__file__)))
    armed = used_names(tests)
    kinds = {name.split("_")[0] + "_" for name in failpoint_names()} & asked_prefixes(tests)
    assert [name for name in failpoint_names() if name not in hit] == []
    assert [name for name in failpoint_names() if name not in armed and not name.startswith(tuple(kinds))] == []


def test_failpoints_have_names_of_their_own() -> None:
    values = [getattr(failpoints, name) for name in failpoint_names()]
    assert len(set(values)) == len(values)
    assert all(
        value == name.lower().replace("_", ".", 1) for name, value in zip(failpoint_names(), values, strict=True)
    )


# --- rooms and packages


def test_resources_and_sensors_stand_at_the_top_as_links() -> None:
    for name in ("resources", "sensors"):
        link = ROOT / name
        assert link.is_symlink()
        assert link.resolve() == PACKAGE / name
        assert importlib.import_module(f"snapshot_assets.{name}").__doc__


def test_every_room_says_what_it_is_for() -> None:
    undescribed = [
        str(path.relative_to(ROOT))
        for path in PACKAGE.rglob("*.py")
        if not path.name.startswith("_pb") and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert undescribed == []


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The names inside a freshly built wheel and sdist, without the sdist's own top folder."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (wheel,) = folder.glob("*.whl")
    (sdist,) = folder.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = archive.namelist()
    with tarfile.open(sdist) as archive_of_source:
        in_sdist = [name.partition("/")[2] for name in archive_of_source.getnames()]
    return {"wheel": in_wheel, "sdist": in_sdist}


def test_the_wheel_holds_the_package_and_nothing_else(built: dict[str, list[str]]) -> None:
    assert {name.split("/")[0] for name in built["wheel"]} == {
        "snapshot_assets",
        f"snapshot_assets-{snapshot_assets.__version__}.dist-info",
    }
    assert "snapshot_assets/py.typed" in built["wheel"]
    assert any(name.endswith("licenses/LICENSE") for name in built["wheel"])


def test_the_links_are_not_shipped(built: dict[str, list[str]]) -> None:
    for names in built.values():
        assert not {name.split("/")[0] for name in names} & {"resources", "sensors"}
        assert "snapshot_assets/py.typed" in names
        assert "snapshot_assets/resources/__init__.py" in names
