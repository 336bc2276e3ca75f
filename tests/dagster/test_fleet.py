"""Which readers a fleet consists of: those that are configured, behind a name, or announced; and who gets the token."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from snapshot_assets.errors import ConfigurationError, TokenRefused
from snapshot_assets.model.announcement import READERS_PREFIX, Announced, Announcement, announcement_key
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.publish.publisher import Publisher
from snapshot_assets.resources import ReaderFleetResource, SnapshotStoreResource
from snapshot_assets.resources.fleet import Fleet
from snapshot_assets.sensors import ReloadTarget, Rollout, build_reload_job, reload_run_config
from snapshot_assets.store.snapshot_store import SnapshotStore


@pytest.fixture
def announce(heads: Any) -> Callable[..., None]:
    """Announce a reader of `orders` in the store of `heads`, straight."""

    def write(reader_id: str, endpoint: str | None, *, dataset: str = "orders", interval_ms: int = 300_000) -> None:
        said = Announcement(reader_id, endpoint, "blue", interval_ms, 0, {dataset: Announced("waiting")})
        heads.store.objects.write_if_absent(announcement_key(reader_id), said.to_bytes())

    return write


@pytest.fixture
def find(heads: Any) -> Callable[..., Fleet]:
    def run(**fields: Any) -> Fleet:
        store = SnapshotStoreResource(url=heads.url)
        return ReaderFleetResource(discover=True, store=store, **fields).find("orders")

    return run


def endpoints(fleet: Fleet) -> list[str]:
    return [reader.endpoint for reader in fleet.readers]


def refusals(fleet: Fleet) -> dict[str, str]:
    return {one.name: one.reason for one in fleet.not_called}


SAFE: dict[str, Any] = {"token": "secret", "tls_ca": "/etc/ca.pem", "allowed_hosts": ["*.internal", "10.1.*"]}
"""All that the token needs."""


def test_nobody_is_discovered_unless_it_is_asked_for(announce: Callable[..., None], heads: Any) -> None:
    announce("one", "grpc://one:8815")
    fleet = ReaderFleetResource(endpoints=["grpc://two:8815"], store=SnapshotStoreResource(url=heads.url))
    assert endpoints(fleet.find("orders")) == ["grpc://two:8815"]
    with pytest.raises(ConfigurationError, match="needs the store"):
        ReaderFleetResource(discover=True).find("orders")


def test_the_token_goes_to_an_allowed_host_over_tls_with_a_configured_ca(
    announce: Callable[..., None], find: Callable[..., Fleet]
) -> None:
    announce("one", "grpc+tls://One.readers.internal:8815")
    announce("two", "grpc+tls://10.1.2.3:8815")
    fleet = find(**SAFE)
    assert endpoints(fleet) == ["grpc+tls://One.readers.internal:8815", "grpc+tls://10.1.2.3:8815"]
    assert fleet.readers[0].cohort == "blue"


@pytest.mark.parametrize(
    ("endpoint", "without", "reason"),
    [
        ("grpc://one.internal:8815", {}, "only sent over TLS"),
        ("grpc+tls://one.internal:8815", {"tls_ca": None}, "without tls_ca"),
        ("grpc+tls://one.internal:8815", {"allowed_hosts": []}, "without allowed_hosts"),
        ("grpc+tls://one.elsewhere:8815", {}, "no pattern of allowed_hosts matches one.elsewhere"),
        ("grpc+tls://one.internal.evil:8815", {}, "no pattern"),
        ("grpc+tls://one.internal:8815@evil:8815", {}, "is no endpoint"),
        ("grpc+tls://evil:8815/one.internal:8815", {}, "is no endpoint"),
        ("grpc+tls://evil\\@one.internal:8815", {}, "is no endpoint"),
        ("grpc+unix:///one.internal", {}, "is no endpoint"),
    ],
)
def test_else_a_discovered_endpoint_is_named_and_not_called(
    announce: Callable[..., None], find: Callable[..., Fleet], endpoint: str, without: dict[str, Any], reason: str
) -> None:
    announce("one", endpoint)
    fleet = find(**SAFE | without)
    assert endpoints(fleet) == []
    assert reason in refusals(fleet)[endpoint]


def test_without_a_token_there_is_nothing_to_protect_but_the_allowed_hosts(
    announce: Callable[..., None], find: Callable[..., Fleet]
) -> None:
    announce("one", "grpc://127.0.0.1:8815")
    assert endpoints(find()) == ["grpc://127.0.0.1:8815"]
    assert endpoints(find(allowed_hosts=["*.internal"])) == []


def test_an_endpoint_that_is_configured_is_called_as_it_is_configured(
    announce: Callable[..., None], find: Callable[..., Fleet]
) -> None:
    announce("one", "grpc://one:8815")
    fleet = find(endpoints=["grpc://one:8815", "grpc://one:8815"], token="secret")
    assert endpoints(fleet) == ["grpc://one:8815"]
    assert fleet.readers[0].cohort == "blue"
    assert not fleet.not_called


def test_who_can_not_be_called_is_named(announce: Callable[..., None], find: Callable[..., Fleet], heads: Any) -> None:
    announce("app", None)
    announce("dead", "grpc://dead:8815", interval_ms=1)
    announce("elsewhere", "grpc://elsewhere:8815", dataset="planes")
    heads.store.objects.write_if_absent(f"{READERS_PREFIX}broken.json", b"{")
    time.sleep(0.05)
    fleet = find()
    assert endpoints(fleet) == []
    found = refusals(fleet)
    assert set(found) == {"app", "grpc://dead:8815", "unknown"}
    assert found["app"] == "follows by itself: it has no endpoint"
    assert "silent since" in found["grpc://dead:8815"]
    assert "Delete readers/broken.json" in found["unknown"]


@pytest.mark.parametrize(("dead", "alive"), [("a", "b"), ("b", "a")])
def test_who_answers_where_a_dead_reader_did_is_called_and_not_called_dead(
    heads: Any, find: Callable[..., Fleet], dead: str, alive: str
) -> None:
    for reader_id, cohort, interval_ms in ((dead, "dead", 1), (alive, "alive", 300_000)):
        said = Announcement(reader_id, "grpc://one:8815", cohort, interval_ms, 0, {"orders": Announced("waiting")})
        heads.store.objects.write_if_absent(announcement_key(reader_id), said.to_bytes())
    time.sleep(0.05)
    for fleet in (find(), find(endpoints=["grpc://one:8815"])):
        assert [(reader.endpoint, reader.cohort) for reader in fleet.readers] == [("grpc://one:8815", "alive")]
        assert not fleet.not_called


def test_a_name_stands_for_each_of_its_addresses() -> None:
    plain = ReaderFleetResource(dns="localhost:8815").find("orders")
    assert "grpc://127.0.0.1:8815" in endpoints(plain)
    assert {reader.tls_hostname for reader in plain.readers} == {None}
    over_tls: list[dict[str, Any]] = [
        {"dns": "localhost:8815", "tls_ca": "/etc/ca.pem"},
        {"dns": "grpc+tls://localhost:8815"},
    ]
    for fields in over_tls:
        [reader] = [one for one in ReaderFleetResource(**fields).find("orders").readers if one.endpoint.count(":") == 2]
        assert (reader.endpoint, reader.tls_hostname) == ("grpc+tls://127.0.0.1:8815", "localhost")
    for wrong in ("", "nobody.invalid:8815", "localhost:http", "localhost:99999"):
        with pytest.raises(ConfigurationError):
            ReaderFleetResource(dns=wrong).find("orders")


# --- real nodes, over TLS


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A certificate for the name alone, and the tokens of the nodes."""
    folder = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext"
    names = ["subjectAltName=DNS:localhost", "-keyout", str(folder / "key"), "-out", str(folder / "cert")]
    subprocess.run([*command.split(), *names], check=True, capture_output=True, timeout=60)
    (folder / "tokens").write_text("secret\n")
    return {
        "tls_cert": folder / "cert",
        "tls_key": folder / "key",
        "token_file": folder / "tokens",
        "control_token_file": folder / "tokens",
    }


@pytest.mark.timeout(300)
def test_announced_readers_are_rolled_out_to_over_tls_and_others_are_not_called(
    nodes: Any, tls: dict[str, Path], tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    url = str(tmp_path / "store")
    dataset = Dataset("orders", "duckdb", tmp_path / "orders.duckdb")

    def publish() -> int:
        with Publisher(SnapshotStore.open(url)) as publisher, publisher.writing(dataset) as writing:
            with writing.connect() as con:
                con.execute("create table if not exists orders (id integer)")
                con.execute("insert into orders values (1)")
            return writing.publish().generation

    publish()
    canary, other, outsider = nodes.start_with(
        url,
        (["orders"], {"cohort": "canary", "advertise": "localhost", **tls}),
        (["orders"], {"advertise": "localhost", **tls}),
        (["orders"], tls),  # it announces 127.0.0.1, which nobody allows
    )
    named = {endpoint: endpoint.replace("127.0.0.1", "localhost") for endpoint in (canary, other)}
    fields: dict[str, Any] = {
        "discover": True,
        "store": SnapshotStoreResource(url=url),
        "tls_ca": str(tls["tls_cert"]),
        "allowed_hosts": ["localhost"],
    }
    fleet = ReaderFleetResource(token="secret", **fields)
    deadline = time.monotonic() + 60
    while len((found := fleet.find("orders")).readers) + len(found.not_called) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert set(endpoints(found)) == set(named.values())
    assert refusals(found) == {outsider: "discovered, and no pattern of allowed_hosts matches 127.0.0.1"}

    job = build_reload_job(rollout=Rollout(canary="canary"), max_retries=0)
    config = reload_run_config(ReloadTarget(dataset="orders", generation=publish()))

    def run(fleet: ReaderFleetResource) -> dg.ExecuteInProcessResult:
        defs = dg.Definitions(jobs=[job], resources={"reader_fleet": fleet})
        return defs.resolve_job_def(job.name).execute_in_process(config, instance=instance, raise_on_error=False)

    refused = run(ReaderFleetResource(token="wrong", **fields))
    [failure] = refused.get_step_failure_events()
    data = failure.step_failure_data.user_failure_data
    assert data is not None
    assert failure.step_key == "check_canary"
    assert "(refused: the bearer token is not known here" in str(data.description)

    passed = run(fleet)
    assert passed.success
    [report] = passed.filter_events(lambda event: event.is_successful_output and event.step_key == "report_reload")
    table = str(report.step_output_data.metadata["summary"].value)
    assert f"| {named[canary]} | canary | canary | loaded |" in table
    assert f"| {named[other]} |  | wave_1 | loaded |" in table
    assert f"| {outsider} |  |  | not called |" in table

    # a DNS name stands for addresses, and the certificate is for the name
    port = canary.rpartition(":")[2]
    by_name = ReaderFleetResource(dns=f"localhost:{port}", token="secret", tls_ca=fields["tls_ca"])
    [reader] = [one for one in by_name.find("orders").readers if "127.0.0.1" in one.endpoint]
    with by_name.open_client(reader, timeout=20.0) as client:
        assert client.status()["cohort"] == "canary"
    without = ReaderFleetResource(token="wrong", tls_ca=fields["tls_ca"])
    with without.open_client(reader, timeout=20.0) as client, pytest.raises(TokenRefused):
        client.status()
