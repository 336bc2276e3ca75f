"""Both ports speak TLS when they are given a certificate."""

from __future__ import annotations

import ssl
import subprocess
import urllib.request
from collections.abc import Callable
from pathlib import Path

import adbc_driver_flightsql
import adbc_driver_flightsql.dbapi as flightsql
import pytest

from snapshot_assets.errors import ConfigurationError, NodeUnavailable
from snapshot_assets.serve.client import NodeClient
from snapshot_assets.serve.node import ReaderNode


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext"
    names = ["subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(folder / "key"), "-out", str(folder / "cert")]
    subprocess.run([*command.split(), *names], check=True, capture_output=True, timeout=60)
    return folder / "cert", folder / "key"


def test_queries_control_and_health_go_over_tls(
    start: Callable[..., ReaderNode], certificate: tuple[Path, Path]
) -> None:
    node = start(tls_cert=certificate[0], tls_key=certificate[1])
    assert node.flight_url.startswith("grpc+tls://")
    trusted = {adbc_driver_flightsql.DatabaseOptions.TLS_ROOT_CERTS.value: certificate[0].read_text()}
    with flightsql.connect(node.flight_url, trusted, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT 42")
        assert cursor.fetchall() == [(42,)]
    with NodeClient(node.flight_url, tls_ca=certificate[0]) as client:
        assert client.status()["ready"] is True
    context = ssl.create_default_context(cafile=str(certificate[0]))
    with urllib.request.urlopen(f"{node.http_url}/readyz", timeout=5, context=context) as answer:
        assert answer.status == 200


def test_a_client_that_does_not_trust_the_certificate_sends_nothing(
    start: Callable[..., ReaderNode], certificate: tuple[Path, Path]
) -> None:
    node = start(tls_cert=certificate[0], tls_key=certificate[1])
    with NodeClient(node.flight_url, "secret", timeout=5) as client, pytest.raises(NodeUnavailable):
        client.status()


def test_a_certificate_that_can_not_be_used_is_a_typed_error(
    start: Callable[..., ReaderNode], certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "bad").write_text("no certificate")
    for cert in (tmp_path / "bad", tmp_path / "missing"):
        with pytest.raises(ConfigurationError):
            start(tls_cert=cert, tls_key=certificate[1])
