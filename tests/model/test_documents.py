"""Documents of the store: read, refused, and written again without losing what this version does not know."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapshot_assets.errors import (
    ConfigurationError,
    DocumentDamaged,
    InvalidDatasetName,
    PathOutsideAnchor,
    SnapshotAssetsError,
    UnsupportedEngine,
    UnsupportedFormatVersion,
    UnsupportedLiveDatabase,
)
from snapshot_assets.ids import new_incarnation_id, new_operation_id, ulid_from_bytes, ulid_to_bytes
from snapshot_assets.model.audit import AuditRow, Outcome
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.model.document import checked, dump_document
from snapshot_assets.model.head import MAX_HEAD_BYTES, Head, Pin, SchemaVersion, SnapshotEntry
from snapshot_assets.model.lease import Holder, WriterLease
from snapshot_assets.model.manifest import FileEntry, Layout, Manifest, TableContent, check_paths, snapshot_digest
from snapshot_assets.model.schema import TableSchema
from snapshot_assets.model.sidecar import Sidecar, SidecarKind

DIGEST = "blake3:" + "0" * 64
SCHEMA = TableSchema.from_arrow(pa.schema([("a", pa.int64())]))


def an_entry(snapshot_id: int = 0) -> SnapshotEntry:
    return SnapshotEntry(
        snapshot_id, new_operation_id(), "key", None, 0, 1_700_000_000_000, DIGEST, DIGEST, 10, 5, 3, (), {"k": "v"}
    )


def a_head() -> Head:
    return Head(
        "orders",
        new_incarnation_id(),
        "duckdb",
        revision=31,
        generation=12,
        epoch=3,
        next_snapshot_id=8,
        current_snapshot_id=7,
        current_since_ms=1,
        schemas=(SchemaVersion(0, {"orders": SCHEMA}),),
        snapshots=(an_entry(2), an_entry(7)),
        pins=(Pin("release", 2, "ops", "", 5, None),),
        properties={"x": 1},
        recent_operation_ids=(new_operation_id(),),
    )


def a_manifest() -> Manifest:
    operation = new_operation_id()
    return Manifest(
        operation_id=operation,
        dataset="orders",
        incarnation=new_incarnation_id(),
        engine="duckdb",
        engine_version="2.0.0",
        storage_version="v2.0.0+",
        created_at_ms=1,
        tables={"orders": TableContent(SCHEMA, 3)},
        files=(
            FileEntry("orders.duckdb", 99, 0o644, Layout.blocks(12_288, 262_144), DIGEST),
            FileEntry("a/b.vortex", 7, 0o644, Layout.whole(), DIGEST),
        ),
        operations=(operation,),
        index_digest=DIGEST,
        content_digest=DIGEST,
        partition_keys=("2013-01-01",),
        checks=({"name": "c", "passed": True},),
        properties={"p": 1},
    )


def a_sidecar() -> Sidecar:
    operation, incarnation = new_operation_id(), new_incarnation_id()
    return Sidecar(operation, SidecarKind.PUBLISH, "orders", incarnation, 3, None, None, {"pid": 1}, 5)


def a_lease() -> WriterLease:
    return WriterLease("orders", Holder("h", "b", 1, "2"), "p", "l", 60_000, 4)


def an_audit_row() -> AuditRow:
    return AuditRow(new_operation_id(), "publish", Outcome.COMMITTED, 1, "me")


def read_head(data: bytes) -> Head:
    return Head.parse(data, "orders")


def read_manifest(data: bytes) -> Manifest:
    return Manifest.parse(data, "manifest.json")


KINDS: dict[str, tuple[Callable[[], Any], Callable[[bytes], Any]]] = {
    "head": (a_head, read_head),
    "manifest": (a_manifest, read_manifest),
    "sidecar": (a_sidecar, lambda data: Sidecar.parse(data, "s")),
    "lease": (a_lease, lambda data: WriterLease.parse(data, "orders")),
    "audit": (an_audit_row, lambda data: AuditRow.parse(data, "a")),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def edited(data: bytes, **changes: Any) -> bytes:
    return json.dumps(json.loads(data) | changes).encode()


@every_kind
def test_a_document_survives_storage(kind: str) -> None:
    make, read = KINDS[kind]
    document = make()
    assert read(document.to_bytes()) == document
    assert json.loads(document.to_bytes())["format_version"] == 1


@every_kind
def test_a_newer_format_version_is_refused_before_anything_else_is_looked_at(kind: str) -> None:
    _, read = KINDS[kind]
    with pytest.raises(UnsupportedFormatVersion, match="format version 2") as caught:
        read(b'{"format_version": 2, "everything": "else is unknown"}')
    assert "Upgrade" in caught.value.hint


@every_kind
def test_keys_of_the_same_version_that_are_unknown_do_no_harm(kind: str) -> None:
    make, read = KINDS[kind]
    read(edited(make().to_bytes(), from_the_future={"a": 1}))


@pytest.mark.parametrize("kind", ["head", "lease"])
def test_unknown_keys_are_kept_when_a_document_is_rewritten(kind: str) -> None:
    make, read = KINDS[kind]
    rewritten = read(edited(make().to_bytes(), from_the_future={"a": 1})).to_bytes()
    assert json.loads(rewritten)["from_the_future"] == {"a": 1}


def test_unknown_keys_of_entries_and_pins_are_kept_too() -> None:
    content = json.loads(a_head().to_bytes())
    content["snapshots"][0]["later"] = 1
    content["pins"][0]["later"] = 2
    rewritten = json.loads(read_head(json.dumps(content).encode()).to_bytes())
    assert rewritten["snapshots"][0]["later"] == 1
    assert rewritten["pins"][0]["later"] == 2


@every_kind
def test_a_missing_key_is_damage(kind: str) -> None:
    make, read = KINDS[kind]
    content = json.loads(make().to_bytes())
    optional = {"recent_operation_ids", "lease_id", "removes", "keys"}
    for key in content.keys() - optional:
        with pytest.raises(DocumentDamaged):
            read(json.dumps({other: value for other, value in content.items() if other != key}).encode())


@every_kind
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_mangled_document_is_a_typed_error_or_still_valid(kind: str, data: st.DataObject) -> None:
    make, read = KINDS[kind]
    content = json.loads(make().to_bytes())
    place: Any = content
    for _ in range(data.draw(st.integers(0, 3))):
        inner = place if isinstance(place, dict) else range(len(place))
        nested = [key for key in inner if isinstance(place[key], dict | list) and place[key]]
        if not nested:
            break
        place = place[data.draw(st.sampled_from(nested))]
    key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else list(range(len(place)))))
    place[key] = data.draw(
        st.sampled_from(
            [None, True, -1, 2**70, 1.5, "", "x", "../../etc", [], {}, [None], {"a": None}, "\0", "é" * 600]
        )
    )
    try:
        read(json.dumps(content).encode())
    except SnapshotAssetsError:
        pass


@every_kind
@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"format_version": 0}', b"[" * 100_000])
def test_what_is_not_a_document_is_damage(kind: str, data: bytes) -> None:
    _, read = KINDS[kind]
    with pytest.raises(DocumentDamaged):
        read(data)


@every_kind
@pytest.mark.parametrize(
    "value",
    [
        rb'"\ud800"',
        rb'"\uDfFf tail"',
        rb'{"\udc00": 1}',
        rb'[{"a": ["\udbff\u0041"]}]',
        b'"\xed\xa0\x80"',
        b"NaN",
        b"[-Infinity]",
        b"1e999",
    ],
)
def test_what_could_not_be_written_again_is_damage(kind: str, value: bytes) -> None:
    make, read = KINDS[kind]
    data = make().to_bytes().rstrip()[:-1] + b', "from_the_future": ' + value + b"}"
    with pytest.raises(DocumentDamaged):
        read(data)


def test_characters_beyond_the_basic_plane_are_kept_however_they_were_escaped() -> None:
    data = a_head().to_bytes().rstrip()[:-1] + rb', "from_the_future": ["\ud83d\ude00", "\\ud800", 1.5e3]}'
    head = read_head(data)
    assert head.extra == {"from_the_future": ["\U0001f600", "\\ud800", 1500.0]}
    assert read_head(head.to_bytes()) == head


CIRCLE: list[Any] = []
CIRCLE.append(CIRCLE)
DEEP: list[Any] = []
for _ in range(100_000):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    "value",
    [
        object(),
        {"a": {1, 2}},
        b"x",
        float("nan"),
        [float("inf")],
        "\ud800",
        {"\udc00": 1},
        {1: 1, "a": 1},
        CIRCLE,
        DEEP,
    ],
    ids=["object", "set", "bytes", "nan", "inf", "surrogate", "surrogate-key", "mixed-keys", "circle", "deep"],
)
def test_what_json_can_not_hold_is_refused_by_name_when_it_is_written(value: object) -> None:
    with pytest.raises(ConfigurationError, match="'odd'"):
        dump_document({"fine": 1, "odd": value})


def test_a_document_that_can_be_read_again_passes_its_check_as_it_is() -> None:
    data = a_head().to_bytes()
    assert checked(data, read_head, MAX_HEAD_BYTES, "heads/orders.json") is data


@pytest.mark.parametrize(
    "broken",
    [
        lambda head: replace(head, pins=(replace(head.pins[0], expires_at_ms=-1),)),
        lambda head: replace(head, pins=(replace(head.pins[0], owner=None),)),
        lambda head: replace(head, snapshots=(replace(head.snapshots[1], idempotency_key=20240101),)),
        lambda head: replace(head, current_since_ms=2**63),
        lambda head: replace(head, current_snapshot_id=99),
        lambda head: replace(head, dataset="main"),
    ],
)
def test_a_document_that_its_own_reader_would_refuse_fails_its_check(broken: Callable[[Head], Head]) -> None:
    data = broken(a_head()).to_bytes()
    with pytest.raises(SnapshotAssetsError) as refused:
        read_head(data)
    with pytest.raises(ConfigurationError, match=r"heads/orders\.json") as caught:
        checked(data, read_head, MAX_HEAD_BYTES, "heads/orders.json")
    assert refused.value.message in caught.value.message


def test_a_manifest_whose_paths_would_be_refused_fails_its_check() -> None:
    manifest = a_manifest()
    data = replace(manifest, files=(replace(manifest.files[0], path="../up"),)).to_bytes()
    with pytest.raises(ConfigurationError, match=r"\.\./up"):
        checked(data, read_manifest, 1_000_000, "manifest.json")


def test_a_document_over_its_limit_fails_its_check_and_is_not_parsed() -> None:
    with pytest.raises(ConfigurationError, match="11 bytes; the limit is 10"):
        checked(b"not a docum", read_head, 10, "heads/orders.json")


@pytest.mark.parametrize(
    "changes",
    [
        {"dataset": "other"},
        {"status": "asleep"},
        {"current_snapshot_id": 5},
        {"next_snapshot_id": 7},
        {"incarnation": "../../tmp"},
        {"revision": -1},
        {"revision": True},
        {"schemas": []},
    ],
)
def test_a_head_that_contradicts_itself_is_damage(changes: dict[str, Any]) -> None:
    with pytest.raises(DocumentDamaged):
        read_head(edited(a_head().to_bytes(), **changes))


def test_a_head_with_too_many_or_unordered_snapshots_is_damage() -> None:
    head = a_head()
    many = replace(head, snapshots=tuple(an_entry(number) for number in range(1_001)), next_snapshot_id=2_000)
    for broken in (many, replace(head, snapshots=head.snapshots[::-1])):
        with pytest.raises(DocumentDamaged):
            read_head(broken.to_bytes())


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/etc/passwd",
        "../up",
        "a/../b",
        "a//b",
        "./a",
        "a/.",
        "a\\b",
        "a\0b",
        "C:/x",
        "x" * 256,
        "\ud800",
        "/".join(["d" * 200] * 6),
    ],
)
def test_a_path_that_could_leave_its_folder_is_refused(path: str) -> None:
    with pytest.raises(PathOutsideAnchor):
        check_paths([path])


@pytest.mark.parametrize("paths", [["a", "A"], ["a", "a"], ["a/b", "A/B"], ["a", "a/b"], ["a/b", "a"], ["ß", "SS"]])
def test_paths_that_collide_on_some_file_system_are_refused(paths: list[str]) -> None:
    with pytest.raises(PathOutsideAnchor):
        check_paths(paths)


def test_a_manifest_with_an_unsafe_path_is_refused_when_it_is_read() -> None:
    content = json.loads(a_manifest().to_bytes())
    content["files"][0]["path"] = "../../escape"
    with pytest.raises(PathOutsideAnchor):
        read_manifest(json.dumps(content).encode())


def test_the_snapshot_digest_is_of_files_in_path_order_and_of_columns_and_of_nothing_else() -> None:
    manifest = a_manifest()
    digest = snapshot_digest(manifest.files, manifest.schemas)
    assert digest == snapshot_digest(manifest.files[::-1], manifest.schemas)
    longer = replace(manifest.files[0], size=100)
    assert digest != snapshot_digest([longer, manifest.files[1]], manifest.schemas)
    other = {"orders": TableSchema.from_arrow(pa.schema([("a", pa.int32())]))}
    assert digest != snapshot_digest(manifest.files, other)


def test_a_ulid_survives_its_bytes_and_only_the_canonical_form_is_one() -> None:
    operation = new_operation_id()
    assert ulid_from_bytes(ulid_to_bytes(operation)) == operation
    for text in (operation.lower(), operation[:-1], "", "U" * 26, "../" + operation[3:]):
        with pytest.raises(DocumentDamaged):
            ulid_to_bytes(text)


@pytest.mark.parametrize("name", ["orders", "a", "a" + "b" * 62, "o_1"])
def test_a_name_that_serves_everywhere_is_accepted(name: str) -> None:
    assert Dataset(name, "duckdb", "x.duckdb").name == name


@pytest.mark.parametrize("name", ["", "Orders", "1a", "a-b", "a" * 64, "main", "temp", "memory", "a/b", "é", "a\n"])
def test_a_name_that_does_not_is_refused(name: str) -> None:
    with pytest.raises(InvalidDatasetName):
        Dataset(name, "duckdb", "x.duckdb")


@pytest.mark.parametrize(
    "path", [":memory:", "", "file::memory:?cache=shared", "file:x.db", "s3://bucket/x.lance", "memory://x"]
)
def test_a_database_without_a_file_is_refused_when_it_is_declared(path: str) -> None:
    with pytest.raises(UnsupportedEngine):
        Dataset("orders", "sqlite", path)


@pytest.mark.parametrize("path", ["a\0b.duckdb", "\ud800.duckdb"])
def test_what_is_no_path_is_refused_when_it_is_declared(path: str) -> None:
    with pytest.raises(UnsupportedLiveDatabase) as caught:
        Dataset("orders", "duckdb", path)
    assert caught.value.dataset == "orders"


@pytest.mark.parametrize("name", ["loop", "loop/orders.duckdb"])
def test_a_path_through_links_without_an_end_is_refused_when_it_is_looked_up(tmp_path: Path, name: str) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "other")
    (tmp_path / "other").symlink_to(tmp_path / "loop")
    dataset = Dataset("orders", "duckdb", tmp_path / name)
    with pytest.raises(UnsupportedLiveDatabase, match="loop") as caught:
        _ = dataset.real_path
    assert caught.value.dataset == "orders"


def test_the_real_path_follows_links_and_need_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("folder")
    real = tmp_path.resolve() / "folder" / "orders.duckdb"
    assert Dataset("orders", "duckdb", "link/x/../orders.duckdb").real_path == real


def test_properties_that_no_manifest_can_hold_are_refused_when_they_are_declared() -> None:
    with pytest.raises(ConfigurationError, match="'x'") as caught:
        Dataset("orders", "duckdb", "x.duckdb", properties={"x": object()})
    assert caught.value.dataset == "orders"


def test_an_unknown_engine_is_refused_when_it_is_declared() -> None:
    with pytest.raises(UnsupportedEngine, match="oracle"):
        Dataset("orders", "oracle", "x")
