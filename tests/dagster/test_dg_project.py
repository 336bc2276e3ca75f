"""The component in a fresh project, by the tools that a user has: `dg` lists, scaffolds, checks and loads it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import dagster as dg
import pytest

from snapshot_assets.store.snapshot_store import SnapshotStore
from tests.dagster.yaml_project import YamlProject

_TYPE = "snapshot_assets.SnapshotCollection"

# What each test mistakes is replaced in this.
_RIGHT = """type: snapshot_assets.SnapshotCollection

attributes:
  store: store
  datasets:
    - name: flights
      engine: duckdb
      path: data/flights.duckdb
      checks:
        - sql: select * from flights where day is null
        - not_null: {table: flights, columns: [day]}
      partitions:
        type: daily
        start_date: 2013-01-01
      owners: ["team:data"]
    - name: weather
      engine: sqlite
      path: data/weather.sqlite
      options: {}
  readers:
    endpoints: [grpc://127.0.0.1:8815]
  sensor:
    minimum_interval_seconds: 60
  maintenance:
    verify: {cron: 0 5 * * 0}
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[YamlProject]:
    with YamlProject(tmp_path_factory.mktemp("project")) as made:
        yield made


@pytest.mark.timeout(600)
def test_a_fresh_project_lists_scaffolds_checks_and_publishes_a_collection(
    project: YamlProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SNAPSHOT_STORE", raising=False)
    [listed] = json.loads(project.command("list", "components", "--package", "snapshot_assets", "--json"))["items"]
    assert listed["key"] == _TYPE
    assert listed["summary"].startswith("Publishes databases as snapshots")

    project.command("scaffold", "defs", _TYPE, "my_snapshots")
    assert "All component YAML validated successfully" in project.command("check", "yaml")
    assert "All definitions loaded successfully" in project.command("check", "defs")
    found = json.loads(project.command("list", "defs", "--json"))
    assert [(asset["asset_key"], asset["kinds"]) for asset in found["assets"]] == [("my_snapshots", ["duckdb", "file"])]
    assert found["assets"][0]["source"] == f"src/{project.name}/defs/my_snapshots/defs.yaml:1"
    assert [resource["name"] for resource in found["resources"]] == ["my_snapshots_store"]

    defs = project.load()
    assert defs.resolve_implicit_global_asset_job_def().execute_in_process().success
    [entry] = SnapshotStore.open(project.root / "snapshots", read_only=True).head("my_snapshots").snapshots
    assert entry.row_count == 1


@pytest.mark.parametrize(
    ("asked", "store", "written"),
    [
        (["my_db", "--engine", "sqlite"], "'{{ env(", ["name: my_db", "engine: sqlite", "path: data/my_db.sqlite"]),
        (
            ["2013-Flights", "--store", "s3://a"],
            "s3://a",
            ["name: example", "engine: duckdb", "path: data/example.duckdb"],
        ),
        (
            ["a", "--dataset", "b", "--engine", "lance", "--path", "c.lance"],
            "'{{ env(",
            ["name: b", "engine: lance", "path: c.lance"],
        ),
    ],
)
def test_what_is_scaffolded_can_be_chosen(
    tmp_path_factory: pytest.TempPathFactory, asked: list[str], store: str, written: list[str]
) -> None:
    with YamlProject(tmp_path_factory.mktemp("chosen")) as project:
        made = project.command_here("scaffold", "defs", _TYPE, *asked)
        assert made.exit_code == 0, made.output
        text = (project.defs_folder / asked[0] / "defs.yaml").read_text()
        assert f"store: {store}" in text
        assert "\n      ".join(written) in text
        assert ("statements:" in text) == ("lance" not in text)
        assert project.command_here("check", "yaml").exit_code == 0
        assert project.load().resolve_asset_graph().get_all_asset_keys() == {dg.AssetKey(written[0].split()[-1])}


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (["--engine", "sqllite"], "no engine is called 'sqllite'; there are cayenne, duckdb, "),
        (["--dataset", "Main"], "'Main' is not a valid dataset name. Use a lower-case letter, "),
    ],
)
def test_nothing_is_scaffolded_that_could_not_be_loaded(project: YamlProject, asked: list[str], reason: str) -> None:
    refused = project.command_here("scaffold", "defs", _TYPE, "refused", *asked)
    assert refused.exit_code == 1
    assert f"Error: {reason}" in refused.output
    assert not (project.defs_folder / "refused").exists()


def _wrong(project: YamlProject, right: str, wrong: str) -> str:
    """Write the right file with a mistake in it."""
    assert _RIGHT.count(right) == 1
    project.write(_RIGHT.replace(right, wrong), folder="my_snapshots")
    return str(project.defs_folder / "my_snapshots" / "defs.yaml")


@pytest.mark.parametrize(
    ("right", "wrong", "line", "reason"),
    [
        ("      options: {}", "      optoins: {}", "      optoins: {}", "('optoins' was unexpected)"),
        ("  sensor:", "  sensr:", "  sensr:", "('sensr' was unexpected)"),
        ("engine: sqlite", "engine: sqllite", "engine: sqllite", "'sqllite' is not one of ['cayenne', 'duckdb', "),
        ("      path: data/weather.sqlite\n", "", "- name: weather", "'path' is a required property"),
        ("type: daily", "type: dayly", "type: dayly", "'dayly' is not one of ['hourly', 'daily', "),
        ("- not_null:", "- not_nul:", "- not_nul:", "('not_nul' was unexpected)"),
        ("columns: [day]", "columns: day", "columns: day", "'day' is not of type 'array'"),
        ("_seconds: 60", "_seconds: often", "_seconds: often", "'often' is not of type 'integer'"),
        ("cron: 0 5", "corn: 0 5", "{corn: ", "('corn' was unexpected)"),
        ('["team:data"]', "team:data", "owners: team:data", "'team:data' is not of type 'array'"),
    ],
)
def test_check_yaml_reports_a_mistake_at_its_line_with_its_reason(
    project: YamlProject, right: str, wrong: str, line: str, reason: str
) -> None:
    path = _wrong(project, right, wrong)
    checked = project.command_here("check", "yaml")
    assert checked.exit_code == 1
    [number] = [number for number, text in enumerate(_RIGHT.replace(right, wrong).splitlines(), 1) if line in text]
    assert checked.output.startswith(f"{path}:{number} - {_TYPE} attributes.")
    assert reason in checked.output.splitlines()[0]
    assert "any of the given schemas" not in checked.output


@pytest.mark.parametrize(
    ("right", "wrong", "line", "reason"),
    [
        ("name: weather", "name: flights", "datasets:", "the dataset 'flights' stands twice. Name each dataset once."),
        ("name: weather", "name: Weather", "name: Weather", "'Weather' is not a valid dataset name. Use a lower-case"),
        (
            "engine: sqlite\n      path: data/weather.sqlite",
            "engine: duckdb\n      path: data/flights.duckdb",
            "datasets:",
            "'flights' and 'weather' both publish ",
        ),
        ("path: data/weather.sqlite", "path: s3://lake/w", "- name: weather", "'s3://lake/w' is not a file or folder"),
        (
            "options: {}",
            "options: {threads: 1}",
            "- name: weather",
            "the sqlite engine has no options, threads was given",
        ),
        (
            "      options: {}",
            "      engine: lance\n      statements: [delete from weather]",
            "- name: weather",
            "'weather' has statements, and its engine 'lance' takes no SQL. duckdb, sqlite, turso do.",
        ),
        (
            "start_date: 2013-01-01",
            "end_date: 2013-01-01",
            "partitions:",
            "daily partitions with no start_date. They need",
        ),
        (
            "start_date: 2013-01-01",
            "start_date: 2013-01-01\n        partition_keys: [a]",
            "partitions:",
            "daily partitions with a partition_keys. They need start_date and may have end_date, ",
        ),
        ("start_date: 2013-01-01", "start_date: January", "partitions:", "time data 'January' does not match format"),
        (
            "type: daily",
            "type: time_window\n        fmt: '%Y-%m-%d'\n        cron_schedule: every day",
            "partitions:",
            "Found invalid cron schedule 'every day'",
        ),
        ("cron: 0 5 * * 0", "cron: on sundays", "{cron: ", "Invalid cron schedule: on sundays"),
        (
            "        - sql: select",
            "        - unique: {table: flights, columns: [day]}\n          sql: select",
            "- unique:",
            "a check names one of sql, not_null, unique, row_count_at_least, row_count_within; this one names 2",
        ),
        ('owners: ["team:data"]', "owners: [data]", "- name: flights", "Invalid owner 'data' for asset"),
        (
            'owners: ["team:data"]',
            "automation_condition: eager",
            "automation_condition: eager",
            "'eager' is not an automation condition. Write {{ snapshot_changed }} or ",
        ),
        (
            "store: store",
            "store: ftp://lake",
            "store: ftp://lake",
            "no store is known for the URL 'ftp://lake'. Use s3://",
        ),
        (
            "store: store",
            'store: "{{ env.NOWHERE }}"',
            "NOWHERE",
            "the environment variable NOWHERE is not set. Name a bucket or a folder, such as {{ env('SNAPSHOT_STORE', ",
        ),
        (
            "endpoints: [grpc://127.0.0.1:8815]",
            "rollout: {waves: [0.5, 0.25]}",
            "rollout: ",
            "waves is (0.5, 0.25); shares rise, and the last one is 1.0. For a quarter, then the rest",
        ),
    ],
)
def test_loading_reports_what_no_schema_can_know_at_its_line_with_its_reason(
    project: YamlProject, right: str, wrong: str, line: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = _wrong(project, right, wrong)
    if wrong.startswith("      engine"):
        project.write(
            _RIGHT.replace("engine: sqlite", "engine: lance").replace(right, wrong.partition("\n")[2]),
            folder="my_snapshots",
        )
    text = (project.defs_folder / "my_snapshots" / "defs.yaml").read_text()
    assert project.command_here("list", "defs").exit_code == 1
    [shown] = caplog.messages
    [number] = [number for number, written in enumerate(text.splitlines(), 1) if line in written]
    assert re.search(rf"{re.escape(path)}:{number} - attributes\.", shown), shown
    [pointed] = [text for text in shown.splitlines() if re.match(r"\s+\|\s+\^ ", text)]
    assert reason in pointed
