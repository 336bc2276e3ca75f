"""The installed command: how it starts, exits and fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from snapshot_assets.testing.servers import S3Server

COMMAND = Path(sys.executable).parent / "snapshot-assets"


def run(*args: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    known = {key: value for key, value in os.environ.items() if not key.startswith(("SNAPSHOT_", "AWS_"))}
    return subprocess.run(
        [COMMAND, *map(str, args)], capture_output=True, text=True, timeout=60, check=False, env=known | environment
    )


def test_starting_loads_no_heavy_library() -> None:
    code = "import sys; import snapshot_assets.cli.app; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout
    assert not set(loaded.split()) & {"boto3", "dagster", "dagster_aws", "duckdb", "obstore", "pandas", "pyarrow"}


def test_version() -> None:
    assert run("--version").stdout.startswith("snapshot-assets 0.")


@pytest.mark.parametrize(
    "args",
    [
        ("nonsense",),
        ("ls", "--nonsense"),
        ("ls",),  # no store
        ("publish", "orders", "--store", "x"),
        ("rollback", "orders", "--to", "-1", "--store", "x"),
        ("verify", "orders", "--level", "deep", "--store", "x"),
        ("ls", "--store", "x", "--store-option", "endpoint"),
    ],
)
def test_wrong_usage_exits_with_2_and_says_how_to_get_help(args: tuple[str, ...], tmp_path: Path) -> None:
    ran = run(*args)
    assert ran.returncode == 2
    assert ran.stdout == ""
    assert "-h" in ran.stderr


def test_a_typed_error_exits_with_1(tmp_path: Path) -> None:
    ran = run("show", "orders", "--json", SNAPSHOT_STORE=str(tmp_path))
    assert ran.returncode == 1
    assert json.loads(ran.stdout)["error"]["kind"] == "NotFound"
    assert ran.stderr.startswith("NotFound: ")
    assert "Traceback" not in ran.stderr


def test_a_store_that_is_not_understood_is_a_typed_error() -> None:
    for url in ("ftp://host/x", "s3://", "file://elsewhere/x"):
        ran = run("ls", "--store", url)
        assert (ran.returncode, ran.stderr.split(":")[0]) == (1, "ConfigurationError")
    ran = run("ls", "--store", "s3://bucket/x", "--store-option", "colour=blue")
    assert "ConfigurationError: s3:// has no option colour" in ran.stderr


def test_credentials_are_never_printed(tmp_path: Path) -> None:
    ran = run(
        "ls", "--json", "--store", "s3://bucket/x", "--store-option", "endpoint=nonsense",
        "--store-option", "access_key_id=AKIDVISIBLE", "--store-option", "secret_access_key=hunter2secret",
    )  # fmt: skip
    assert ran.returncode == 1
    assert "hunter2secret" not in ran.stdout + ran.stderr


def test_arrow_output_is_an_arrow_stream(tmp_path: Path) -> None:
    import duckdb
    import pyarrow as pa

    with duckdb.connect(str(tmp_path / "n.duckdb")) as live:
        live.execute("create table n as select range as n from range(10)")
    store = {"SNAPSHOT_STORE": str(tmp_path / "store")}
    assert run("publish", "n", "--engine", "duckdb", "--path", tmp_path / "n.duckdb", **store).returncode == 0
    done = subprocess.run(
        [COMMAND, "query", "n", "from n", "--format", "arrow"],
        capture_output=True,
        timeout=60,
        check=True,
        env=os.environ | store,
    )
    assert pa.ipc.open_stream(done.stdout).read_all().to_pydict() == {"n": list(range(10))}
    assert done.stderr == b""


def test_doctor_looks_at_machine_and_store(tmp_path: Path) -> None:
    without = json.loads(run("doctor", "--json").stdout)["checks"]
    assert [(check["name"], check["state"]) for check in without] == [("versions", "ok"), ("store", "warning")]
    ran = run("doctor", "--json", "--store", tmp_path / "store")
    assert ran.returncode == 0
    checks = {check["name"]: check for check in json.loads(ran.stdout)["checks"]}
    assert list(checks) == ["versions", "access", "identity", "pending", "writing", "clock"]
    assert {check["state"] for check in checks.values()} == {"ok"}
    assert not any(path.is_file() for path in (tmp_path / "store" / "probe").rglob("*"))
    assert "conditional writes" in run("doctor", "--store", tmp_path / "store").stdout


def test_doctor_fails_where_the_store_does(tmp_path: Path) -> None:
    blocked = tmp_path / "store"
    blocked.write_text("a file where a folder should be")
    ran = run("doctor", "--json", "--store", blocked)
    assert ran.returncode == 1
    checks = json.loads(ran.stdout)["checks"]
    assert checks[-1]["state"] == "failed"
    assert checks[-1]["hint"]


@pytest.mark.parametrize("content", ["{bad", "[1]", "{}", '{"format_version": 1}', '{"format_version": 99, "x": 1}'])
def test_doctor_tells_of_a_store_whose_identity_is_damaged(tmp_path: Path, content: str) -> None:
    (tmp_path / "store.json").write_text(content)
    ran = run("doctor", "--json", "--store", tmp_path)
    assert ran.returncode == 1
    checks = {check["name"]: check for check in json.loads(ran.stdout)["checks"]}
    assert checks["identity"]["state"] == "failed"
    assert "store.json" in checks["identity"]["detail"]
    assert checks["writing"]["state"] == "ok"


def test_doctor_warns_where_reading_is_all_that_is_permitted(s3_server: S3Server, s3_url: str) -> None:
    options = (f"--store-option={name}={value}" for name, value in s3_server.reader_options.items())
    ran = run("doctor", "--json", "--store", s3_url, *options)
    assert ran.returncode == 0
    last = json.loads(ran.stdout)["checks"][-1]
    assert (last["name"], last["state"]) == ("writing", "warning")
    assert "not permitted" in last["detail"]


def test_serve_answers_until_it_is_told_to_stop(tmp_path: Path) -> None:
    import adbc_driver_flightsql.dbapi as flight_sql
    import duckdb

    with duckdb.connect(str(tmp_path / "n.duckdb")) as live:
        live.execute("create table n as select range as n from range(10)")
    store = {"SNAPSHOT_STORE": str(tmp_path / "store")}
    assert run("publish", "n", "--engine", "duckdb", "--path", tmp_path / "n.duckdb", **store).returncode == 0
    (tmp_path / "tokens").write_text("sesame\n")
    command: list[str | Path] = [
        COMMAND,
        "serve",
        "--dataset",
        "n",
        "--data-dir",
        tmp_path / "node",
        "--port",
        "0",
        "--http-port",
        "0",
    ]
    command += ["--token-file", tmp_path / "tokens", "--refresh-interval", "off", "--max-rows", "5"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | store) as node:
        try:
            assert node.stdout is not None
            line = json.loads(node.stdout.readline())
            assert (line["ready"], line["missing"], line["pid"]) == (True, {}, node.pid)
            header = {"adbc.flight.sql.authorization_header": "Bearer sesame"}
            with flight_sql.connect(line["flight"], db_kwargs=header) as con, con.cursor() as cursor:
                cursor.execute("select sum(n) as total from n.main.n where n < ?", [5])
                assert cursor.fetch_arrow_table().to_pydict() == {"total": [10]}
                with pytest.raises(flight_sql.Error, match="QueryStopped"):
                    cursor.execute("select n from n.main.n")
                    cursor.fetch_arrow_table()
            node.terminate()
            assert node.wait(timeout=30) == 0
        finally:
            node.kill()


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        (("--host", "0.0.0.0"), "ConfigurationError"),
        (("--tls-cert", "cert.pem"), "ConfigurationError"),
        (("--token-file", "nowhere"), "ConfigurationError"),
        (("--dataset", "Not A Name"), "InvalidDatasetName"),
    ],
)
def test_serve_refuses_what_can_not_work(options: tuple[str, ...], kind: str, tmp_path: Path) -> None:
    ran = run("serve", "--dataset", "n", "--data-dir", tmp_path / "node", "--store", tmp_path, "--port", "0", *options)
    assert ran.returncode == 1
    assert f"{kind}: " in ran.stderr
    assert "Traceback" not in ran.stderr
