"""What people use otherwise: s5cmd and boto3 for plain files, Litestream for SQLite."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from snapshot_assets.testing.servers import S3Server

__all__ = ["Litestream", "boto3_upload", "bytes_below", "s5cmd_upload"]

_SECONDS = 1200


def s5cmd_upload(path: Path, server: S3Server) -> None:
    """Upload a file, or all files of a folder."""
    source = f"{path}/" if path.is_dir() else str(path)
    _run(server, "s5cmd", "--endpoint-url", server.endpoint, "cp", source, f"{server.new_url()}/copy/")


def boto3_upload(path: Path, server: S3Server) -> None:
    """Upload a file, or all files of a folder."""
    client = server.client()
    bucket, _, prefix = server.new_url().removeprefix("s3://").partition("/")
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            client.upload_file(str(file), bucket, f"{prefix}/{file.relative_to(path.parent)}")


def bytes_below(url: str, server: S3Server) -> int:
    """The bytes of all objects under a URL."""
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    pages = server.client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/")
    return sum(found["Size"] for page in pages for found in page.get("Contents", []))


class Litestream:
    """Replicates one SQLite file, which it writes to: give it a copy.

    Args:
        live: the file. While changes are to be replicated as changes, somebody must keep a connection to it open, with
            `wal_autocheckpoint` at 0.
        server: where to.
    """

    def __init__(self, live: Path, server: S3Server) -> None:
        self._live = live
        self._server = server
        self.url = server.new_url()

    def replicate(self) -> None:
        """One sync: of the whole file the first time, of what changed after that."""
        self._run("replicate", "-once", "-log-level", "error", str(self._live), self._replica)

    def replicate_anew(self) -> None:
        """A first sync."""
        shutil.rmtree(self._live.with_name(f".{self._live.name}-litestream"), ignore_errors=True)
        self.url = self._server.new_url()
        self.replicate()

    def restore(self, target: Path) -> None:
        """The whole file, anew."""
        for name in (target.name, f"{target.name}-wal", f"{target.name}-shm", f"{target.name}-txid"):
            target.with_name(name).unlink(missing_ok=True)
        self._run("restore", "-o", str(target), self._replica)

    @property
    def _replica(self) -> str:
        return f"{self.url}?endpoint={self._server.endpoint}&forcePathStyle=true"

    def _run(self, *arguments: str) -> None:
        _run(self._server, "litestream", *arguments)


def _run(server: S3Server, program: str, *arguments: str) -> None:
    """Run a program that a package has put beside this interpreter."""
    environment = {
        **os.environ,
        "AWS_ACCESS_KEY_ID": server.access_key_id,
        "AWS_SECRET_ACCESS_KEY": server.secret_access_key,
        "AWS_REGION": "us-east-1",
    }
    environment.pop("AWS_CA_BUNDLE", None)  # the server has no certificate
    command = [str(Path(sys.executable).with_name(program)), *arguments]
    done = subprocess.run(command, check=False, capture_output=True, timeout=_SECONDS, env=environment, text=True)
    if done.returncode:
        raise RuntimeError(f"{program} failed: {done.stderr.strip() or done.stdout.strip()}")
