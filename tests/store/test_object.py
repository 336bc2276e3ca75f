from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import pytest

from snapshot_assets.errors import (
    AccessDenied,
    ConfigurationError,
    Conflict,
    NotFound,
    StoreError,
    StoreUnavailable,
)
from snapshot_assets.store.contract import Store
from snapshot_assets.store.object import ObjectStore
from snapshot_assets.store.snapshot_store import SnapshotStore
from snapshot_assets.testing.relay import Relay
from snapshot_assets.testing.servers import S3Server

PART = 16 * 1024 * 1024
KEYS = {"access_key_id": "k", "secret_access_key": "s"}


@pytest.fixture
def no_aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """An environment that says nothing about AWS."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    return monkeypatch


@pytest.fixture
def relay(s3_server: S3Server) -> Iterator[Relay]:
    with Relay(s3_server.endpoint) as relay:
        yield relay


@pytest.fixture
def relayed(relay: Relay, s3_url: str, s3_options: dict[str, str]) -> ObjectStore:
    return ObjectStore(s3_url, {**s3_options, "endpoint": relay.endpoint}, single_put_bytes=PART)


def parts_left(server: S3Server, url: str) -> list[str]:
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    with contextlib.closing(server.client()) as client:
        uploads = client.list_multipart_uploads(Bucket=bucket, Prefix=prefix).get("Uploads", [])
    return [upload["Key"] for upload in uploads]


def every_operation(store: Store) -> list[Callable[[], object]]:
    return [
        lambda: store.read("a"),
        lambda: store.read_if_changed("a", '"token"'),
        lambda: store.read_ranges("a", [(0, 1)]),
        lambda: store.write_if_absent("a", b"x"),
        lambda: store.write_if_match("a", b"x", '"token"'),
        lambda: store.upload("a", b"x"),
        lambda: list(store.list("a/")),
        lambda: store.delete(["a"]),
    ]


def wait_until_stopped(pid: int) -> None:
    """The signal only asks for it: until every thread has stopped, one of them may still answer."""
    deadline = time.monotonic() + 10
    while any("\nState:\tT" not in (task / "status").read_text() for task in Path(f"/proc/{pid}/task").iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


class TestRequests:
    def test_each_operation_costs_one_request(self, relay: Relay, relayed: ObjectStore) -> None:
        def cost(operation: Callable[[], object]) -> int:
            before = len(relay.requests)
            operation()
            return len(relay.requests) - before

        tokens = []
        assert cost(lambda: tokens.append(relayed.write_if_absent("a/b", b"one"))) == 1
        assert cost(lambda: relayed.read("a/b")) == 1
        assert cost(lambda: relayed.read_if_changed("a/b", tokens[-1])) == 1
        assert cost(lambda: tokens.append(relayed.write_if_match("a/b", b"two", tokens[-1]))) == 1
        assert cost(lambda: relayed.read_if_changed("a/b", tokens[0])) == 1
        assert cost(lambda: relayed.upload("a/pack", bytes(PART))) == 1
        assert cost(lambda: list(relayed.list("a/"))) == 1
        assert cost(lambda: relayed.read_ranges("a/pack", [(0, 10), (1000, 10), (1_000_000, 10)])) == 1
        assert cost(lambda: relayed.read_ranges("a/pack", [(0, 10), (1024 * 1024 + 11, 10)])) == 2
        assert cost(lambda: relayed.delete(["a/b", "a/pack", "a/missing"])) == 1
        assert cost(lambda: relayed.delete([])) == 0

    def test_an_overloaded_server_is_not_asked_again_behind_our_back(self, relay: Relay, relayed: ObjectStore) -> None:
        relay.judge = lambda _: "refuse"
        for operation in every_operation(relayed):
            before = len(relay.requests)
            with pytest.raises(StoreUnavailable, match="503"):
                operation()
            assert len(relay.requests) - before == 1

    def test_a_lost_answer_is_unavailable_and_not_asked_again(self, relay: Relay, relayed: ObjectStore) -> None:
        relay.judge = lambda _: "lose"
        for operation in every_operation(relayed):
            with pytest.raises(StoreUnavailable):
                operation()
        assert len(relay.requests) == len(every_operation(relayed))


class TestParts:
    @pytest.mark.parametrize("size", [PART + 1, 3 * PART, 3 * PART + 17])
    def test_parts_become_one_object(
        self, relayed: ObjectStore, s3_server: S3Server, s3_url: str, tmp_path: Path, size: int
    ) -> None:
        data = os.urandom(1024) * (size // 1024) + b"x" * (size % 1024)
        source = tmp_path / "source"
        source.write_bytes(data)
        relayed.upload("from/file", source)
        relayed.upload("from/memory", memoryview(data))
        assert relayed.read("from/file").data == data
        assert relayed.read("from/memory").data == data
        assert parts_left(s3_server, s3_url) == []

    def test_parts_never_replace_an_object_and_are_removed(
        self, relayed: ObjectStore, s3_server: S3Server, s3_url: str
    ) -> None:
        relayed.write_if_absent("pack", b"first")
        with pytest.raises(Conflict):
            relayed.upload("pack", bytes(2 * PART))
        with pytest.raises(Conflict):
            relayed.upload_in_parts("pack", b"small")
        assert relayed.read("pack").data == b"first"
        assert parts_left(s3_server, s3_url) == []

    def test_a_part_that_fails_removes_the_others(
        self, relay: Relay, relayed: ObjectStore, s3_server: S3Server, s3_url: str
    ) -> None:
        relay.judge = lambda request: "refuse" if "partNumber=3" in request.path else "relay"
        with pytest.raises(StoreUnavailable):
            relayed.upload("pack", bytes(5 * PART))
        assert any("partNumber=2" in request.path for request in relay.requests)
        assert parts_left(s3_server, s3_url) == []
        with pytest.raises(NotFound):
            relayed.read("pack")

    def test_a_source_that_fails_removes_the_parts(
        self, relayed: ObjectStore, s3_server: S3Server, s3_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def part(source: bytes, offset: int, length: int) -> bytes:
            if offset >= 2 * PART:
                raise OSError("the disk is gone")
            return source[offset : offset + length]

        monkeypatch.setattr("snapshot_assets.store.parts._part", part)
        with pytest.raises(OSError, match="the disk is gone"):
            relayed.upload("pack", bytes(4 * PART))
        assert parts_left(s3_server, s3_url) == []

    def test_a_lost_completion_is_unavailable_and_the_object_is_there(
        self, relay: Relay, relayed: ObjectStore, s3_server: S3Server, s3_url: str
    ) -> None:
        data = os.urandom(PART + 5)
        relay.judge = lambda request: "lose" if request.method == "POST" and "uploadId=" in request.path else "relay"
        with pytest.raises(StoreUnavailable):
            relayed.upload("pack", data)
        assert relayed.read("pack").data == data
        assert parts_left(s3_server, s3_url) == []


class TestTime:
    def test_a_server_that_hangs_is_given_up_in_bounded_time(self) -> None:
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen(64)
            endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
            store = ObjectStore(
                "s3://bucket", {**KEYS, "endpoint": endpoint}, document_timeout=0.3, transfer_timeout=0.3
            )
            operations = every_operation(store)
            operations.append(lambda: store.upload_in_parts("a", b"x"))
            for operation in operations:
                started = time.monotonic()
                with pytest.raises(StoreUnavailable):
                    operation()
                assert time.monotonic() - started < 3

    def test_a_server_that_stops_and_goes_on_serves_again(
        self, s3_server: S3Server, s3_url: str, s3_options: dict[str, str]
    ) -> None:
        store = ObjectStore(s3_url, s3_options, document_timeout=1.0)
        store.write_if_absent("a", b"x")
        os.kill(s3_server.pid, signal.SIGSTOP)
        try:
            wait_until_stopped(s3_server.pid)
            with pytest.raises(StoreUnavailable):
                store.read("a")
        finally:
            os.kill(s3_server.pid, signal.SIGCONT)
        assert store.read("a").data == b"x"

    def test_a_server_that_is_not_there_is_unavailable(self) -> None:
        store = ObjectStore("s3://bucket", {**KEYS, "endpoint": "http://127.0.0.1:1"})
        for operation in every_operation(store):
            with pytest.raises(StoreUnavailable):
                operation()


class TestAccess:
    def test_somebody_who_may_only_read_is_told_so(
        self, s3_server: S3Server, s3_url: str, s3_options: dict[str, str]
    ) -> None:
        token = ObjectStore(s3_url, s3_options).write_if_absent("a", b"x")
        reader = ObjectStore(s3_url, s3_server.reader_options)
        assert reader.read("a").data == b"x"
        assert [listed.key for listed in reader.list("")] == ["a"]
        for refused in (
            lambda: reader.write_if_absent("b", b"x"),
            lambda: reader.write_if_match("a", b"x", token),
            lambda: reader.upload("b", b"x"),
            lambda: reader.upload_in_parts("b", b"x"),
            lambda: reader.delete(["a"]),
        ):
            with pytest.raises(AccessDenied) as caught:
                refused()
            assert "credentials" in caught.value.hint

    @pytest.mark.parametrize("wrong", [{"access_key_id": "nobody"}, {"secret_access_key": "wrong"}])
    def test_wrong_keys_are_refused(self, s3_url: str, s3_options: dict[str, str], wrong: dict[str, str]) -> None:
        store = ObjectStore(s3_url, {**s3_options, **wrong})
        with pytest.raises(AccessDenied) as caught:
            store.read("a")
        assert s3_options["secret_access_key"] not in str(caught.value)

    def test_keys_and_endpoint_come_from_the_environment(
        self, s3_server: S3Server, s3_url: str, no_aws: pytest.MonkeyPatch
    ) -> None:
        no_aws.setenv("AWS_ENDPOINT_URL", s3_server.endpoint)
        no_aws.setenv("AWS_ACCESS_KEY_ID", s3_server.access_key_id)
        no_aws.setenv("AWS_SECRET_ACCESS_KEY", s3_server.secret_access_key)
        store = ObjectStore(s3_url)
        store.write_if_absent("a", b"x")
        store.upload_in_parts("b", b"x")
        assert store.read("a").data == b"x"

    def test_keys_come_from_a_profile(
        self, s3_server: S3Server, s3_url: str, no_aws: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / "credentials").write_text(
            f"[team]\naws_access_key_id = {s3_server.access_key_id}\n"
            f"aws_secret_access_key = {s3_server.secret_access_key}\n"
        )
        no_aws.setenv("AWS_PROFILE", "team")
        ObjectStore(s3_url, {"endpoint": s3_server.endpoint}).write_if_absent("a", b"x")

    def test_a_profile_that_does_not_exist_is_a_configuration_error(self, no_aws: pytest.MonkeyPatch) -> None:
        no_aws.setenv("AWS_PROFILE", "nobody")
        with pytest.raises(ConfigurationError, match="nobody"):
            ObjectStore("s3://bucket").read("a")

    def test_keys_come_from_a_boto3_session(self, s3_server: S3Server, s3_url: str, no_aws: pytest.MonkeyPatch) -> None:
        session = boto3.Session(s3_server.access_key_id, s3_server.secret_access_key, region_name="eu-west-1")
        store = ObjectStore(s3_url, {"endpoint": s3_server.endpoint}, credentials=session)
        store.write_if_absent("a", b"x")
        store.upload_in_parts("b", b"x")
        assert {listed.key for listed in store.list("")} == {"a", "b"}

    def test_options_never_mix_with_the_environment(self, relay: Relay, no_aws: pytest.MonkeyPatch) -> None:
        no_aws.setenv("AWS_ACCESS_KEY_ID", "environment")
        no_aws.setenv("AWS_SECRET_ACCESS_KEY", "environment")
        no_aws.setenv("AWS_SESSION_TOKEN", "environment")
        no_aws.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        no_aws.setenv("AWS_REGION", "us-west-2")
        store = ObjectStore("s3://bucket/p", {**KEYS, "endpoint": relay.endpoint, "region": "eu-north-1"})
        for write in (store.write_if_absent, store.upload_in_parts):
            with pytest.raises(StoreError):
                write("a", b"x")
        assert len(relay.requests) == 2
        for request in relay.requests:
            assert "Credential=k/" in request.headers["authorization"]
            assert "/eu-north-1/s3/" in request.headers["authorization"]
            assert "x-amz-security-token" not in request.headers

    def test_a_session_token_is_sent(self, relay: Relay) -> None:
        store = ObjectStore("s3://bucket", {**KEYS, "session_token": "t", "endpoint": relay.endpoint})
        with pytest.raises(StoreError):
            store.read("a")
        assert relay.requests[0].headers["x-amz-security-token"] == "t"

    def test_no_keys_at_all_is_an_error_with_a_hint(self, no_aws: pytest.MonkeyPatch) -> None:
        store = ObjectStore("s3://bucket")
        with pytest.raises(AccessDenied, match="no AWS credentials") as caught:
            store.read("a")
        assert "AWS_ACCESS_KEY_ID" in caught.value.hint

    def test_a_bucket_that_does_not_exist_is_an_error_with_a_hint(self, s3_options: dict[str, str]) -> None:
        store = ObjectStore("s3://no-such-bucket-here", s3_options)
        with pytest.raises(StoreError, match="does not exist") as caught:
            store.read("a")
        assert not isinstance(caught.value, NotFound)

    def test_boto3_is_not_imported_when_the_options_hold_the_keys(self) -> None:
        script = (
            "import sys; from snapshot_assets.store.object import ObjectStore\n"
            "from snapshot_assets.errors import StoreUnavailable\n"
            "try: ObjectStore('s3://bucket', {'access_key_id': 'k', 'secret_access_key': 's', 'region': 'r',"
            " 'endpoint': 'http://127.0.0.1:1'}).read('a')\n"
            "except StoreUnavailable: print('boto3' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60, check=True)
        assert done.stdout.split() == [b"False"]


class TestUrls:
    @pytest.mark.parametrize(
        ("given", "url"),
        [
            ("s3://bucket", "s3://bucket"),
            ("s3://bucket/", "s3://bucket"),
            ("s3://bucket/a b/c/", "s3://bucket/a b/c"),
            ("gs://bucket.with.dots/p", "gs://bucket.with.dots/p"),
            ("az://container/p/q", "az://container/p/q"),
        ],
    )
    def test_the_prefix_is_kept_as_it_is(self, given: str, url: str) -> None:
        assert ObjectStore(given).url == url

    @pytest.mark.parametrize(
        "url",
        [
            "s3://", "s3:///prefix", "s3://b/../c", "s3://b//c", "s3://key:secret@bucket/p", "s3://bucket/p?region=x",
            "s3://bucket/p#f", "ftp://bucket",
        ],
    )  # fmt: skip
    def test_other_urls_are_refused(self, url: str) -> None:
        with pytest.raises(ConfigurationError) as caught:
            ObjectStore(url)
        assert "secret" not in str(caught.value)

    @pytest.mark.parametrize(
        ("url", "options", "message"),
        [
            ("s3://bucket", {"endpont": "http://x"}, "endpont"),
            ("s3://bucket", {"account_name": "x"}, "account_name"),
            ("s3://bucket", {"access_key_id": "x"}, "belong together"),
            ("s3://bucket", {"session_token": "x"}, "belong together"),
            ("s3://bucket", {"endpoint": "localhost:9000"}, "not an http"),
            ("s3://bucket", {"allow_http": "maybe"}, "allow_http"),
            ("s3://bucket", {"endpoint": "http://x", "allow_http": "false"}, "allow_http"),
            ("gs://bucket", {"region": "x"}, "region"),
            ("az://bucket", {"access_key_id": "x"}, "access_key_id"),
        ],
    )
    def test_options_that_can_not_work_are_refused_at_once(
        self, url: str, options: dict[str, str], message: str
    ) -> None:
        with pytest.raises(ConfigurationError, match=message):
            ObjectStore(url, options)

    def test_an_unknown_option_is_answered_with_the_known_ones(self) -> None:
        with pytest.raises(ConfigurationError) as caught:
            ObjectStore("s3://bucket", {"endpont": "x"})
        for known in ("endpoint", "region", "access_key_id", "secret_access_key", "session_token", "allow_http"):
            assert known in caught.value.hint

    def test_credentials_are_a_boto3_session_for_s3(self) -> None:
        session = boto3.Session("k", "s")
        with pytest.raises(ConfigurationError, match=r"boto3\.Session"):
            ObjectStore("s3://bucket", credentials={"key": "secret"})
        with pytest.raises(ConfigurationError, match="twice"):
            ObjectStore("s3://bucket", KEYS, credentials=session)
        for url in ("gs://bucket", "az://bucket"):
            with pytest.raises(ConfigurationError, match="boto3"):
                ObjectStore(url, credentials=session)


@contextlib.contextmanager
def google() -> Iterator[tuple[str, list[tuple[str, Message]]]]:
    """As much of Google's interface as one object needs, and every request that reached it."""
    requests: list[tuple[str, Message]] = []
    objects: dict[str, tuple[int, bytes]] = {}

    class Google(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            requests.append((self.command, self.headers))
            generation, data = objects.get(self.path, (0, b""))
            status = 200
            if self.command == "PUT":
                if self.headers["x-goog-if-generation-match"] == str(generation):
                    generation, data = objects[self.path] = (generation + 1, body)
                else:
                    status = 412
            elif not generation:
                status = 404
            tag = f'"{hashlib.md5(data).hexdigest()}"'
            if self.command == "GET" and self.headers.get("if-none-match") == tag:
                status = 304
            sent = data if self.command != "PUT" and status == 200 else b""
            self.send_response_only(status)
            self.send_header("ETag", tag)
            self.send_header("x-goog-generation", str(generation))
            self.send_header("Last-Modified", "Sat, 21 Nov 2026 15:00:00 GMT")
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(sent)

        do_GET = do_HEAD = do_PUT = answer  # noqa: N815

    with ThreadingHTTPServer(("127.0.0.1", 0), Google) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", requests
        server.shutdown()


class TestOtherProviders:
    """Google and Azure without an account: the requests that would reach them, and what their answers become."""

    def test_google_gets_conditions_on_generations(self) -> None:
        with google() as (endpoint, requests):
            store = ObjectStore("gs://bucket/p", {"endpoint": endpoint, "bearer_token": "t"})
            token = store.write_if_absent("folder/a b", b"one")
            for write in (store.write_if_absent, store.upload, store.upload_in_parts):
                with pytest.raises(Conflict):
                    write("folder/a b", b"x")
            assert [sent["x-goog-if-generation-match"] for _, sent in requests] == ["0"] * 4
            later = store.write_if_match("folder/a b", b"two", token)
            assert [method for method, _ in requests[4:]] == ["HEAD", "PUT"]
            assert requests[-1][1]["x-goog-if-generation-match"] == "1"
            assert store.read("folder/a b").token == later
            assert store.read_if_changed("folder/a b", later) is None
            with pytest.raises(Conflict):
                store.write_if_match("folder/a b", b"three", token)
            with pytest.raises(Conflict):
                store.write_if_match("missing", b"three", token)
            assert store.read("folder/a b").data == b"two"

    def test_azure_gets_conditions_on_tags(self) -> None:
        options = {"account_name": "account", "account_key": "a2V5"}
        with Relay() as relay:
            store = ObjectStore("az://container/p", {**options, "endpoint": relay.endpoint})
            for write in (store.write_if_absent, store.upload, store.upload_in_parts):
                with contextlib.suppress(StoreError):
                    write("folder/a", b"x")
            with contextlib.suppress(StoreError):
                store.write_if_match("folder/a", b"x", '"0x1"')
            with contextlib.suppress(StoreError):
                store.read_if_changed("folder/a", '"0x1"')
        *created, replaced, read = relay.requests
        assert [request.headers["if-none-match"] for request in created] == ["*"] * 3
        assert replaced.headers["if-match"] == '"0x1"'
        assert read.headers["if-none-match"] == '"0x1"'
        assert {request.path for request in relay.requests} == {"/container/p/folder/a"}

    @pytest.mark.parametrize(
        ("url", "options"),
        [
            ("gs://bucket", {"service_account_key": "{}"}),
            ("az://container", {}),
            ("az://container", {"account_name": "account", "account_key": "not base64!"}),
        ],
    )
    def test_credentials_that_can_not_be_used_are_a_configuration_error(
        self, url: str, options: dict[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT"):
            monkeypatch.delenv(name, raising=False)
        with pytest.raises(ConfigurationError, match="can not be opened"):
            ObjectStore(url, options).read("a")

    @pytest.mark.parametrize("url", ["s3://bucket/p", "gs://bucket/p", "az://container/p"])
    def test_opening_for_reading_asks_nothing(self, url: str, no_aws: pytest.MonkeyPatch) -> None:
        assert SnapshotStore.open(url, read_only=True).url == url
