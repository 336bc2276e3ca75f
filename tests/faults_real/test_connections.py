"""Connections that break, stall and end too early, at every kind of request: typed errors only, and nothing is lost."""

from __future__ import annotations

import signal
from collections import defaultdict
from dataclasses import replace
from typing import Final, get_args
from urllib.parse import unquote

import pytest

from snapshot_assets import failpoints
from snapshot_assets.testing.relay import Relay, Request, Verdict
from snapshot_assets.testing.servers import S3Server
from tests.faults_real.actors import Part, clean, read, write
from tests.faults_real.crew import Crew
from tests.faults_real.history import check_all, settle
from tests.faults_real.place import Place

SPOILT: Final[tuple[Verdict, ...]] = ("refuse", "lose", "delay", "cut", "reset", "break")

KINDS: Final = {
    "GET heads", "PUT heads",
    "GET leases", "PUT leases",
    "GET recovery", "PUT recovery", "LIST recovery",
    "GET data", "PUT data", "LIST data",
    "PUT audit", "LIST audit",
    "DELETE",
}  # fmt: skip
"""What publishes, recoveries, refreshes and cleanups ask for."""

ERRORS: Final = {"StoreUnavailable", "RecoveryRequired", "WriterBusy", "Superseded"}


class Spoiler:
    """Spoils each kind of request in each way, so many times, and never the same kind twice in a row."""

    def __init__(self, prefix: str, times: int) -> None:
        self._prefix = prefix
        self._times = times
        self._asked: dict[str, int] = defaultdict(int)
        self.spoilt: dict[tuple[str, str], int] = defaultdict(int)
        self.is_on = True

    def __call__(self, request: Request) -> Verdict:
        kind = self._kind(request)
        if kind not in KINDS or not self.is_on:
            return "relay"
        self._asked[kind] += 1
        if self._asked[kind] % 3:
            return "relay"
        verdict = min(SPOILT, key=lambda verdict: self.spoilt[kind, verdict])
        if self.spoilt[kind, verdict] >= self._times:
            return "relay"
        self.spoilt[kind, verdict] += 1
        return verdict

    def missing(self) -> list[tuple[str, str]]:
        return [(kind, way) for kind in sorted(KINDS) for way in SPOILT if self.spoilt[kind, way] < self._times]

    def _kind(self, request: Request) -> str:
        query = request.path.partition("?")[2]
        if request.method == "DELETE" or (request.method == "POST" and "delete" in query):
            return "DELETE"
        place = request.path
        if "list-type" in query:
            place = unquote(query)
        what = "LIST" if "list-type" in query else request.method
        return f"{what} {place.rpartition(self._prefix + '/')[2].partition('/')[0]}"


def test_the_relay_knows_every_way_that_is_used() -> None:
    assert set(SPOILT) <= set(get_args(Verdict))


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("times", [1, pytest.param(25, marks=pytest.mark.soak)])
def test_every_kind_of_request_is_spoilt_in_every_way_and_nothing_is_lost(
    s3_server: S3Server, s3_url: str, crew: Crew, tmp_path_factory: pytest.TempPathFactory, times: int
) -> None:
    folder = tmp_path_factory.mktemp("place")
    direct = Place(folder, s3_url, s3_server.options)
    settle(direct)
    spoiler = Spoiler(s3_url.removeprefix("s3://snapshots/"), times)
    with Relay(s3_server.endpoint, spoiler) as relay:
        relay.delay = 0.3
        place = replace(direct, options={**s3_server.options, "endpoint": relay.endpoint})
        processes = [
            crew.start(write, place, Part("writer0", live="live0", retry_for=2.0)),
            crew.start(write, place, Part("writer1", live="live1", retry_for=0.0, wait=1.0)),
            crew.start(clean, place, Part("cleaner", retry_for=0.0, pause=0.05)),
            crew.start(read, place, Part("reader", retry_for=0.0, pause=0.02)),
        ]
        deaths = 0
        while (missing := spoiler.missing()) or not deaths:
            # Writers that die, so that there is always something to settle.
            part = Part(
                "dying", live="dying", retry_for=2.0, wait=5.0, turns=3, failpoint=failpoints.PUBLISH_AFTER_EFFECTS
            )
            dying = crew.start(write, place, part)
            dying.join(60)
            deaths += dying.exitcode == -signal.SIGKILL
            assert all(crew.is_alive(process) for process in processes), (missing, place.events()[-5:])
            assert deaths < 200 * times, missing
        spoiler.is_on = False
        direct.end()
        for process in processes:
            crew.ended(process)
    kinds = check_all(
        direct,
        refusals={
            "writer": ERRORS,
            "dying": ERRORS,
            "cleaner": ERRORS | {"Conflict"},
            "reader": ERRORS | {"NotLoaded"},
        },
    )
    print(f"\n{sum(spoiler.spoilt.values())} requests were spoilt, {deaths} writers died: {dict(kinds)}")
    assert kinds["refused StoreUnavailable"]
    assert kinds["published"]
    assert kinds["served"]
