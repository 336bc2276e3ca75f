"""`doctor`: whether this machine and the store can do what they are asked for."""

from __future__ import annotations

import platform
import sqlite3
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Final, Literal

import typer

from snapshot_assets.cli.options import JsonOutput, OptionalStoreUrl, StoreOptions, open_store
from snapshot_assets.cli.output import print_json, spinner
from snapshot_assets.clock import SYSTEM_CLOCK
from snapshot_assets.errors import NotFound, SnapshotAssetsError

if TYPE_CHECKING:
    from snapshot_assets.store.contract import Store
    from snapshot_assets.store.snapshot_store import SnapshotStore

__all__ = ["doctor"]

_PACKAGES: Final = ("snapshot-assets", "duckdb", "pyarrow", "obstore", "dagster", "dagster-aws", "starlette", "uvicorn")
_CLOCK_TOLERANCE_MS: Final = 60_000
_MARKS: Final = {"ok": ("ok", "green"), "warning": ("warning", "yellow"), "failed": ("FAILED", "red")}


@dataclass(frozen=True, slots=True)
class Finding:
    """What one look told."""

    name: str
    state: Literal["ok", "warning", "failed"]
    detail: str
    hint: str = ""


def doctor(store: OptionalStoreUrl = None, store_option: StoreOptions = None, as_json: JsonOutput = False) -> None:
    """Check the versions on this machine, and the store: access, permissions, conditional writes, clock."""
    findings = [_versions()]
    if store is None:
        findings.append(Finding("store", "warning", "no store was named", "Give --store or set SNAPSHOT_STORE."))
    else:
        with spinner("Asking the store"):
            findings += _look_at_store(open_store(store, store_option, read_only=True))
    if as_json:
        print_json({"checks": [asdict(finding) for finding in findings]})
    else:
        _print(findings)
    if any(finding.state == "failed" for finding in findings):
        raise typer.Exit(1)


def _versions() -> Finding:
    found = [f"Python {platform.python_version()}", f"SQLite {sqlite3.sqlite_version}"]
    for package in _PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"{package} missing")
    return Finding("versions", "ok", ", ".join(found))


def _look_at_store(store: SnapshotStore) -> list[Finding]:
    """The findings in the order in which they depend on each other; what can not be asked any more is left out."""
    objects = store.objects
    findings = [_finding("access", lambda: f"{objects.url} answers; {len(store.heads())} datasets")]
    if findings[-1].state == "failed":
        return findings
    findings.append(_finding("identity", lambda: _identity(store)))
    findings.append(_pending(store))
    probe = _probe(objects)
    findings.append(probe)
    if probe.state == "ok":
        findings.append(_clock(objects))
    return findings


def _finding(name: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(name, "ok", look())
    except SnapshotAssetsError as error:
        return Finding(name, "failed", f"{error.kind}: {error.message}", error.hint)


def _identity(store: SnapshotStore) -> str:
    try:
        return f"store {store.store_id}, of a format that this version reads"
    except NotFound:
        return "no store.json yet: the first writer makes it"


def _probe(objects: Store) -> Finding:
    """Whether the store keeps the promises that publishing rests on."""
    from snapshot_assets.errors import AccessDenied
    from snapshot_assets.store.probe import probe_store

    try:
        refused = "" if probe_store(objects) else "nothing may be written here"
    except AccessDenied as error:
        refused = error.message
    except SnapshotAssetsError as error:
        return Finding("writing", "failed", f"{error.kind}: {error.message}", error.hint)
    if refused:
        hint = "Reading works; publishing needs to write and delete."
        return Finding("writing", "warning", f"not permitted: {refused}", hint)
    return Finding("writing", "ok", "conditional writes and uploads hold what they promise")


def _clock(objects: Store) -> Finding:
    """How far this machine's clock is from the store's; times in documents are for people, so this only warns."""
    from snapshot_assets.ids import new_ulid

    key = f"probe/{new_ulid()}"
    try:
        before = SYSTEM_CLOCK.now_ms()
        objects.write_if_absent(key, b"clock")
        try:
            stored = next(listed.last_modified_ms for listed in objects.list("probe/") if listed.key == key)
        finally:
            objects.delete([key])
        after = SYSTEM_CLOCK.now_ms()
    except SnapshotAssetsError as error:
        return Finding("clock", "failed", f"{error.kind}: {error.message}", error.hint)
    apart_ms = max(before - stored - 1_000, stored - after, 0)
    if apart_ms > _CLOCK_TOLERANCE_MS:
        return Finding(
            "clock", "warning", f"{apart_ms / 1000:.0f} s away from the store's", "Set this machine's clock."
        )
    return Finding("clock", "ok", "agrees with the store's")


def _pending(store: SnapshotStore) -> Finding:
    """What nobody has ended yet; a working writer is no fault, so this only warns."""
    from snapshot_assets.maintenance.repair import all_pending

    try:
        rows = all_pending(store)
    except SnapshotAssetsError as error:
        return Finding("pending", "failed", f"{error.kind}: {error.message}", error.hint)
    if not rows:
        return Finding("pending", "ok", "no operation is unfinished")
    told = [f"{row.dataset}: {row.kind} {row.subject}, {row.found}; settled by {row.settled_by}" for row in rows]
    return Finding("pending", "warning", "\n".join(told), "`snapshot-assets repair` tells what it would do about them.")


def _print(findings: list[Finding]) -> None:
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        mark, colour = _MARKS[finding.state]
        detail = finding.detail.replace("\n", f"\n{'':<{width}}           ")
        typer.echo(f"{finding.name:<{width}}  " + typer.style(f"{mark:<7}", fg=colour) + f"  {detail}")
        if finding.hint:
            typer.echo(f"{'':<{width}}           {finding.hint}")
