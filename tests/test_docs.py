"""The docs say what the code does: every command, option, setting and error is in them, and their Python runs."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import pkgutil
import re
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from typer.main import get_command

import snapshot_assets
from snapshot_assets.cli.app import app
from snapshot_assets.errors import SnapshotAssetsError
from snapshot_assets.model import engines

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
SHARED_OPTIONS = {"--store", "--store-option", "--json", "--help", "-h"}


def sections(page: str) -> dict[str, str]:
    """The text under each second-level heading of a page of the docs, by the heading without its backticks."""
    parts = re.split(r"^## (.+)$", (DOCS / page).read_text(), flags=re.MULTILINE)
    return dict(zip((title.replace("`", "") for title in parts[1::2]), parts[2::2], strict=True))


def section(page: str, name: str) -> str:
    """The section whose heading begins with a name."""
    (found,) = (text for title, text in sections(page).items() if re.match(rf"{re.escape(name)}\b", title))
    return found


def commands() -> dict[str, Any]:
    return dict(get_command(app).commands)  # type: ignore[attr-defined]


# --- reference


def test_every_verb_has_a_section_and_no_other_section_is_a_verb() -> None:
    assert sorted(commands()) == sorted(sections("reference/cli.md"))


@pytest.mark.parametrize("verb", sorted(commands()))
def test_every_option_of_a_verb_is_documented_and_no_other_is(verb: str) -> None:
    options = {option for parameter in commands()[verb].params for option in parameter.opts if option.startswith("-")}
    written = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", section("reference/cli.md", verb)))
    assert options - SHARED_OPTIONS <= written
    assert written <= options | SHARED_OPTIONS


def test_the_shared_options_are_documented() -> None:
    intro = (DOCS / "reference/cli.md").read_text().split("\n## ")[0]
    assert all(f"`{option}" in intro for option in SHARED_OPTIONS)
    assert "SNAPSHOT_STORE" in intro


def documented(text: str) -> set[str]:
    return set(re.findall(r"`(\w+)`", text))


def test_every_setting_is_documented() -> None:
    from snapshot_assets.model.dataset import Dataset
    from snapshot_assets.publish.publisher import Publisher
    from snapshot_assets.reader.settings import ReaderSettings
    from snapshot_assets.serve.node import NodeSettings
    from snapshot_assets.store.connect import OPTIONS
    from snapshot_assets.store.snapshot_store import SnapshotStore

    page = "reference/settings.md"
    for name, given in {
        "SnapshotStore.open": set(inspect.signature(SnapshotStore.open).parameters),
        "Dataset": {field.name for field in fields(Dataset)},
        "Publisher": set(inspect.signature(Publisher).parameters),
        "ReaderSettings": {field.name for field in fields(ReaderSettings)},
        "NodeSettings": {field.name for field in fields(NodeSettings)},
    }.items():
        assert given - documented(section(page, name)) == set(), name
    open_section = section(page, "SnapshotStore.open")
    guide = (DOCS / "guides/stores.md").read_text()
    for scheme, known in OPTIONS.items():
        for text in (open_section, guide):
            cells = re.findall(rf"^\| `{scheme}` \| (.*?) \|", text, flags=re.MULTILINE)
            assert documented(" ".join(cells)) == known


def test_defaults_in_the_docs_are_the_defaults_of_the_code() -> None:
    from snapshot_assets.publish.publisher import Publisher
    from snapshot_assets.reader.settings import ReaderSettings
    from snapshot_assets.serve.node import NodeSettings

    for name, owner in {"Publisher": Publisher, "ReaderSettings": ReaderSettings, "NodeSettings": NodeSettings}.items():
        rows = re.findall(r"^\| `(\w+)` \| ([^|]+?) \|", section("reference/settings.md", name), flags=re.MULTILINE)
        defaults = {key: value.default for key, value in inspect.signature(owner).parameters.items()}
        compared = 0
        for key, written in rows:
            default = getattr(defaults[key], "value", defaults[key])
            if isinstance(default, int | float | str) and not isinstance(default, bool):
                assert written.strip("`").replace(",", "") == (
                    f"{default:g}" if isinstance(default, float) else str(default)
                ), key
                compared += 1
        assert compared > 3


def test_every_dagster_field_is_documented() -> None:
    from snapshot_assets.resources import ReaderFleetResource, SnapshotReaderResource, SnapshotStoreResource

    for page in ("reference/settings.md", "reference/dagster.md"):
        text = (DOCS / page).read_text()
        for resource in (ReaderFleetResource, SnapshotReaderResource, SnapshotStoreResource):
            row = re.search(rf"`{resource.__name__}`[^\n]*\n?[^\n]*", text)
            assert row is not None
            assert set(resource.model_fields) <= documented(text), resource.__name__


INNER = {"over", "read_head", "read_head_if_changed"}
"""Methods for the rooms of the package itself."""


def test_every_public_name_is_documented() -> None:
    assert set(snapshot_assets.__all__) == set(sections("reference/python.md"))
    for name in ("Publisher", "SnapshotReader", "Maintenance", "SnapshotStore"):
        public = getattr(snapshot_assets, name)
        text = section("reference/python.md", name)
        methods = {key for key, value in vars(public).items() if callable(value) and not key.startswith("_")}
        assert {key for key in methods if f".{key}" not in text} <= INNER, name


def errors_of_the_package() -> Iterator[type[SnapshotAssetsError]]:
    for module in pkgutil.walk_packages(snapshot_assets.__path__, "snapshot_assets."):
        if module.name.split(".")[1] in {"errors", "serve", "publish", "reader", "store", "engines", "content"}:
            importlib.import_module(module.name)
    waiting = SnapshotAssetsError.__subclasses__()
    while waiting:
        cls = waiting.pop()
        if cls.__module__.startswith("snapshot_assets."):
            yield cls
        waiting += cls.__subclasses__()


def test_every_error_is_documented_with_its_hint() -> None:
    rows = {
        found[1]: (found[2], found[3])
        for found in re.finditer(
            r"^\| `(\w+)` \| (.*?) \| (.*?)\s*\|$", (DOCS / "reference/errors.md").read_text(), flags=re.MULTILINE
        )
    }
    known = {cls.__name__: cls for cls in errors_of_the_package()}
    known = {name: cls for name, cls in known.items() if not name.startswith("_")}
    assert set(rows) == set(known)
    for name, cls in known.items():
        what, hint = rows[name]
        assert hint == cls.default_hint, name
        if not cls.__subclasses__():
            first = " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split())
            assert what == first, name


# --- all pages


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.is_file(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\s-]", "", heading.lower()).replace(" ", "-") for heading in headings}, (
                target
            )


def blocks(page: Path, first_line: str) -> list[str]:
    """The blocks of a page whose first lines begin with these words, such as `yaml` or `python app.py`."""
    found = rf"^```{re.escape(first_line)}(?!\S)[^\n]*\n(.*?)^```"
    return re.findall(found, page.read_text(), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_on_a_page_exist(page: Path) -> None:
    known = commands()
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            called = re.search(r"snapshot-assets ((?!')\S+)(.*?)(#|$)", line)
            if not called or called[1].startswith("-") or "pip install" in line:
                continue
            assert called[1] in known, line
            options = {option for parameter in known[called[1]].params for option in parameter.opts}
            assert set(re.findall(r"(?<=\s)--[a-z-]+", called[2])) <= options, line


def python_of(page: Path) -> str:
    """The Python of a page, one block after the other, at the lines where it stands; `notest` blocks aside."""
    kept, inside = [], False
    for line in page.read_text().splitlines():
        starts = re.match(r"```(\w*)(.*)$", line)
        if starts:
            inside = not inside and starts[1] == "python" and "notest" not in starts[2]
            kept.append("")
        else:
            kept.append(line if inside else "")
    return "\n".join(kept)


ENGINE_GUIDE = DOCS / "guides/add-an-engine.md"


def file_in(page: Path, name: str) -> str:
    """The file that the blocks of this name on a page make together."""
    return "\n".join(blocks(page, f"python {name}"))


@pytest.fixture
def engine_of_the_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package of the guide to engines is installed."""
    info = tmp_path / "site" / "feather_engine-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: feather-engine\nVersion: 1.0\n")
    offered = re.findall(r'^feather = "(.+)"$', ENGINE_GUIDE.read_text(), flags=re.MULTILINE)
    (info / "entry_points.txt").write_text(f"[{engines.ENTRY_POINTS}]\nfeather = {offered[0]}\n")
    (info.parent / "feather_engine.py").write_text(file_in(ENGINE_GUIDE, "feather_engine.py"))
    monkeypatch.syspath_prepend(info.parent)
    engines._offered.cache_clear()
    yield
    sys.modules.pop("feather_engine", None)
    engines._offered.cache_clear()


def test_the_engine_of_the_guide_is_the_one_that_passes_the_contract() -> None:
    folder = ROOT / "tests/engines"
    tested = ast.parse((folder / "third_party/feather_engine.py").read_text()).body[1:]  # without the docstring
    assert ast.dump(ast.Module(tested, [])) == ast.dump(ast.parse(file_in(ENGINE_GUIDE, "feather_engine.py")))
    suites = (
        (folder / "test_third_party_engine.py").read_text(),
        file_in(ENGINE_GUIDE, "test_feather.py"),
    )
    one, other = (
        [ast.dump(node) for node in ast.parse(suite).body if isinstance(node, ast.ClassDef)] for suite in suites
    )
    assert one == other != []


GETTING_STARTED = DOCS / "getting-started.md"
RUNNABLE = [page for page in PAGES if python_of(page).strip() and page != GETTING_STARTED]


@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: str(page.relative_to(ROOT)))
@pytest.mark.usefixtures("engine_of_the_guide")
def test_the_python_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SNAPSHOT_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    exec(compile(python_of(page), str(page), "exec"), {"__name__": "__main__"})


def test_the_pages_that_promise_a_run_are_run() -> None:
    run = {str(page.relative_to(ROOT)) for page in RUNNABLE}
    assert {
        "README.md",
        "docs/getting-started-in-python.md",
        "docs/guides/dagster.md",
        "docs/guides/read-in-python.md",
    } <= run
    assert {f"docs/guides/publish-{name}.md" for name in ("cayenne", "duckdb", "lance", "sqlite", "turso")} <= run
    assert "docs/guides/add-an-engine.md" in run


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_can_not_run_here_can_be_parsed(page: Path) -> None:
    for code in blocks(page, "python"):
        ast.parse(textwrap.dedent(code))
    for document in blocks(page, "yaml"):
        list(yaml.safe_load_all(document))
    for document in blocks(page, "json"):
        json.loads(document)


def commands_in(document: object) -> Iterator[list[str]]:
    """What the containers of a Kubernetes manifest run, command and arguments."""
    match document:
        case dict():
            if "command" in document:
                yield [*document["command"], *document.get("args", [])]
            for value in document.values():
                yield from commands_in(value)
        case list():
            for value in document:
                yield from commands_in(value)


def test_containers_run_commands_that_exist() -> None:
    known = commands()
    manifests = [
        document for text in blocks(DOCS / "guides/kubernetes.md", "yaml") for document in yaml.safe_load_all(text)
    ]
    ours = [command[1:] for command in commands_in(manifests) if command[0] == "snapshot-assets"]
    assert {verb for verb, *_ in ours} >= {"serve"}
    for verb, *arguments in ours:
        options = {option for parameter in known[verb].params for option in parameter.opts}
        assert {argument.partition("=")[0] for argument in arguments if argument.startswith("-")} <= options


@contextmanager
def running(code: str) -> Iterator[Iterator[str]]:
    """The lines that a program prints while it runs; it is killed at the end."""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        try:
            yield iter(program.stdout)
        finally:
            program.kill()


def test_the_app_of_getting_started_swaps_while_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import duckdb

    from snapshot_assets import Maintenance, SnapshotStore

    monkeypatch.chdir(tmp_path)

    def materialize(definitions: str) -> None:
        held: dict[str, Any] = {}
        exec(compile(definitions, "definitions.py", "exec"), held)
        assert held["defs"].resolve_implicit_global_asset_job_def().execute_in_process().success

    (what_you_have, with_snapshots), (app, swapping_app) = (
        blocks(GETTING_STARTED, f"python {name}") for name in ("definitions.py", "app.py")
    )
    materialize(what_you_have)
    with running(app) as lines:
        assert next(lines).startswith("(50000, ")
        with pytest.raises(duckdb.IOException, match="Could not set lock"):
            materialize(what_you_have)

    materialize(with_snapshots)
    with running(swapping_app) as lines:
        first = next(lines)
        materialize(with_snapshots)
        swapped = next(line for line in lines if line != first)  # the asset draws other amounts every time
        assert swapped.startswith("(50000, ")
        Maintenance(SnapshotStore.open("store")).rollback("shop", 0)
        assert next(line for line in lines if line != swapped) == first


def test_alerts_and_panels_ask_for_metrics_that_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import duckdb

    from snapshot_assets import Dataset, Maintenance, Publisher, ReaderSettings, SnapshotReader, SnapshotStore

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SNAPSHOT_STORE", str(tmp_path / "store"))
    with duckdb.connect("orders.duckdb") as con:
        con.execute("create table orders as select 1 as id")
    store = SnapshotStore.open("store")
    with Publisher(store) as publisher, publisher.writing(Dataset("orders", "duckdb", "orders.duckdb")) as writing:
        writing.publish()
        with SnapshotReader(store, Path("reader"), ReaderSettings(refresh_interval=None)) as reader:
            reader.follow("orders")
            while not Maintenance(store).readers():
                time.sleep(0.1)
            page = DOCS / "guides/monitoring.md"
            exec(compile(file_in(page, "snapshot_metrics.py"), "snapshot_metrics.py", "exec"), {"__name__": "__main__"})
    written = set(re.findall(r"^(snapshot_\w+)(?:{.*})? \d", Path("snapshots.prom").read_text(), flags=re.MULTILINE))
    asked = set(re.findall(r"\bsnapshot_[a-z_]+", section("guides/monitoring.md", "Alerts")))
    asked |= set(re.findall(r"\bsnapshot_[a-z_]+", section("guides/monitoring.md", "A dashboard")))
    assert asked == written


def test_every_guarantee_names_tests_that_are_there() -> None:
    table = (ROOT / "docs/understanding/guarantees.md").read_text().split("shown by, in `tests/` |")[1].split("\n\n")[0]
    rows = [row.split("|")[3] for row in table.splitlines() if row.startswith("| ")]
    assert len(rows) >= 19
    for row in rows:
        named = re.findall(r"`([^`]+)`", row)
        assert named
        for path in named:
            text = (ROOT / "tests" / path).read_text()
            assert "def test_" in text or "EngineContract" in text
