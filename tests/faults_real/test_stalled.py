"""Whoever stands still, at whichever step, and goes on after the others have done their work, harms nobody."""

from __future__ import annotations

import signal
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from snapshot_assets import failpoints
from snapshot_assets.errors import SnapshotAssetsError
from snapshot_assets.maintenance.maintenance import Maintenance
from snapshot_assets.model.head import Status
from tests.faults_real.actors import KEEP, Part, clean, drop_and_recreate, read, sweep, write
from tests.faults_real.crew import Crew
from tests.faults_real.history import check_all, settle
from tests.faults_real.place import NAME, Place

AT_ONCE = 6
"""How many cells are played side by side: most of their time is waiting for a lease."""

INACTIVE = {"DatasetSealed", "DatasetDropped", "IncarnationChanged"}
REFUSALS = {
    "writer": {"Superseded", "WriterBusy"} | INACTIVE,
    "healer": {"Superseded", "WriterBusy"} | INACTIVE,
    "cleaner": {"Conflict"} | INACTIVE,
    "sweeper": {"Conflict"} | INACTIVE,
    "dropper": {"IncarnationChanged", "MaintenanceError", "DatasetDropped"},
}

Subject = Callable[[Place, Part], None]


def points(prefix: str, *, but: Collection[str] = ()) -> list[str]:
    return [value for name, value in vars(failpoints).items() if name.startswith(prefix) and value not in but]


def publish_and_clean(place: Place, crew: Crew) -> None:
    """Enough publishes that retention takes what the stalled one knew, by writers who have to outlast its lease."""
    crew.ended(crew.start(write, place, Part("other", live="other", turns=KEEP + 1)))
    crew.ended(crew.start(clean, place, Part("cleaner", turns=1)))
    crew.ended(crew.start(sweep, place, Part("sweeper", turns=1)))
    assert len([event for event in place.events("other") if event["kind"] == "published"]) == KEEP + 1


def drop_and_publish(place: Place, crew: Crew) -> None:
    """The name gets another incarnation, with a snapshot in it."""
    maintenance = Maintenance(place.store(place.journal("operator")))
    if place.store().head(NAME).status is not Status.DROPPED:
        maintenance.drop(NAME, confirm=True, force=True)
    maintenance.recreate(NAME)
    crew.ended(crew.start(write, place, Part("other", live="other", turns=2)))
    assert len([event for event in place.events("other") if event["kind"] == "published"]) == 2


def unseal_and_publish(place: Place, crew: Crew) -> None:
    """What was being dropped is in use again, unless that is too late."""
    if place.store().head(NAME).status is Status.DROPPED:
        return drop_and_publish(place, crew)
    Maintenance(place.store(place.journal("operator"))).unseal(NAME)
    crew.ended(crew.start(write, place, Part("other", live="other", turns=2)))
    return None


def play(crew: Crew, place: Place, subject: Subject, part: Part, meanwhile: Callable[[Place, Crew], None]) -> None:
    """One cell: the subject stops itself, the others work, the subject goes on to its end, and all promises hold."""
    settle(place)
    if part.actor == "healer":
        dead = crew.start(write, place, Part("dead", failpoint=failpoints.PUBLISH_AFTER_EFFECTS, turns=1))
        crew.ended(dead, -signal.SIGKILL)
    if part.actor in {"cleaner", "dropper"}:
        crew.ended(crew.start(write, place, Part("before", turns=KEEP + 1)))
    stopped = crew.start_stopping(subject, place, part)
    meanwhile(place, crew)
    assert crew.is_stopped(stopped)
    incarnation = place.store().head(NAME).incarnation
    crew.send(stopped, signal.SIGCONT)
    crew.ended(stopped)
    assert place.store().head(NAME).incarnation == incarnation
    if place.store().head(NAME).status is Status.SEALED:
        Maintenance(place.store(place.journal("operator"))).unseal(NAME)
    check_all(place, refusals=REFUSALS)


def play_all(
    crew: Crew, tmp_path: Path, subject: Subject, parts: list[Part], meanwhile: Callable[[Place, Crew], None]
) -> None:
    def play_one(part: Part) -> None:
        folder = tmp_path / f"{part.failpoint}-{part.call}"
        folder.mkdir()
        try:
            play(crew, Place(folder, str(folder / "store")), subject, part, meanwhile)
        except (AssertionError, SnapshotAssetsError) as error:
            raise AssertionError(f"{part.actor} stalled at {part.failpoint or part.call}: {error}") from error

    with ThreadPoolExecutor(AT_ONCE) as threads:
        list(threads.map(play_one, parts))


def at_failpoints(actor: str, where: list[str]) -> list[Part]:
    return [Part(actor, failpoint=failpoint, turns=1) for failpoint in where]


def at_calls(actor: str, calls: Collection[int]) -> list[Part]:
    return [Part(actor, call=call, turns=1) for call in calls]


SOAK = pytest.mark.soak

WRITER_POINTS = points("PUBLISH_")
CLEANER_POINTS = points("CLEANUP_")
DROPPER_POINTS = points("DROP_")
READER_POINTS = points("REFRESH_")

HEALER_CALLS = (6, 9, 11)
"""In the normal run; what the calls are, is not counted on."""


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("subject", "parts", "meanwhile"),
    [
        pytest.param(write, at_failpoints("writer", WRITER_POINTS[::2]), publish_and_clean, id="writer"),
        pytest.param(write, at_calls("healer", HEALER_CALLS), publish_and_clean, id="healer"),
        pytest.param(clean, at_failpoints("cleaner", CLEANER_POINTS[1:3]), publish_and_clean, id="cleaner"),
        pytest.param(drop_and_recreate, at_failpoints("dropper", DROPPER_POINTS[1:3]), drop_and_publish, id="dropper"),
        pytest.param(
            drop_and_recreate, at_failpoints("dropper", DROPPER_POINTS[:1]), unseal_and_publish, id="dropper-unsealed"
        ),
        pytest.param(sweep, at_calls("sweeper", [3]), publish_and_clean, id="sweeper"),
        pytest.param(read, at_failpoints("reader", READER_POINTS[:3]), publish_and_clean, id="reader"),
        pytest.param(write, at_failpoints("writer", WRITER_POINTS), publish_and_clean, id="writer-all", marks=SOAK),
        pytest.param(write, at_failpoints("writer", WRITER_POINTS), drop_and_publish, id="writer-drop", marks=SOAK),
        pytest.param(write, at_calls("healer", range(1, 22)), publish_and_clean, id="healer-all", marks=SOAK),
        pytest.param(write, at_calls("healer", range(1, 22)), drop_and_publish, id="healer-drop", marks=SOAK),
        pytest.param(clean, at_calls("cleaner", range(1, 20)), publish_and_clean, id="cleaner-all", marks=SOAK),
        pytest.param(clean, at_calls("cleaner", range(1, 20)), drop_and_publish, id="cleaner-drop", marks=SOAK),
        pytest.param(sweep, at_calls("sweeper", range(1, 6)), publish_and_clean, id="sweeper-all", marks=SOAK),
        pytest.param(
            drop_and_recreate, at_calls("dropper", range(8, 16)), drop_and_publish, id="dropper-all", marks=SOAK
        ),
        pytest.param(read, at_failpoints("reader", READER_POINTS), publish_and_clean, id="reader-all", marks=SOAK),
        pytest.param(read, at_failpoints("reader", READER_POINTS), drop_and_publish, id="reader-drop", marks=SOAK),
    ],
)
def test_whoever_stands_still_and_goes_on_harms_nobody(
    crew: Crew,
    tmp_path: Path,
    subject: Subject,
    parts: list[Part],
    meanwhile: Callable[[Place, Crew], None],
) -> None:
    play_all(crew, tmp_path, subject, parts, meanwhile)


def test_a_writer_that_stands_still_on_a_real_server_is_fenced_and_undone(
    s3_url: str, s3_options: dict[str, str], crew: Crew, tmp_path: Path
) -> None:
    place = Place(tmp_path, s3_url, s3_options)
    play(crew, place, write, Part("writer", failpoint=failpoints.PUBLISH_BEFORE_COMMIT, turns=1), publish_and_clean)
    assert [event["error"] for event in place.events("writer") if event["kind"] == "refused"] == ["Superseded"]


@pytest.mark.parametrize(
    "failpoint", [failpoints.PUBLISH_AFTER_CAPTURE, failpoints.PUBLISH_AFTER_SIDECAR, failpoints.PUBLISH_BEFORE_COMMIT]
)
def test_a_retry_whose_live_database_has_changed_is_the_only_one_of_its_key(
    local_place: Place, crew: Crew, failpoint: str
) -> None:
    place = local_place
    settle(place)
    stalled = crew.start_stopping(write, place, Part("writer0", key="run-1", failpoint=failpoint, turns=1))
    crew.ended(crew.start(write, place, Part("writer1", key="run-1", turns=1)))  # it changes the live database, too
    crew.send(stalled, signal.SIGCONT)
    crew.ended(stalled)
    [retry] = [event for event in place.events("writer1") if event["kind"] == "published"]
    ends = [
        event for event in place.events("writer0") if event["kind"] in {"already_published", "refused", "published"}
    ]
    assert [end.get("error", end.get("operation_id")) for end in ends] in (["Superseded"], [retry["operation_id"]])
    [entry] = [one for one in place.store().head(NAME).snapshots if one.idempotency_key == "run-1"]
    assert (entry.operation_id, entry.summary["rows"]) == (retry["operation_id"], retry["rows"])
    check_all(place, refusals=REFUSALS)


def test_a_retry_after_a_publish_whose_answer_nobody_got_answers_with_that_publish(
    local_place: Place, crew: Crew
) -> None:
    place = local_place
    settle(place)
    part = Part("writer0", key="run-1", failpoint=failpoints.PUBLISH_AFTER_COMMIT, turns=1)
    crew.ended(crew.start(write, place, part), -signal.SIGKILL)
    settle(place)  # the live database changes, and somebody publishes it
    crew.ended(crew.start(write, place, replace(part, actor="writer1", failpoint=None)))
    [answer] = [event for event in place.events("writer1") if event["kind"] == "already_published"]
    [made] = [event for event in place.events("writer0") if event["kind"] == "publishing"]
    [entry] = [one for one in place.store().head(NAME).snapshots if one.idempotency_key == "run-1"]
    assert (entry.operation_id, entry.summary["rows"]) == (answer["operation_id"], made["rows"])
    check_all(place, refusals={})
