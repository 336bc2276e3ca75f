"""Every error that snapshot-assets raises on purpose.

The tree, grouped by what the caller can do about it:

    SnapshotAssetsError
      ConfigurationError            what was asked for can not work: change the settings
        InvalidDatasetName
        UnsupportedEngine
        UnsupportedLiveDatabase
        MissingExtra
        InconsistentSnapshotSettings
      StoreError                    the object store, or a document in it
        NotFound
        Conflict
        AccessDenied
        UnsafeStore
        StoreUnavailable
        UnsupportedFormatVersion
        DocumentDamaged
      CaptureError                  the live database, or the staged copy of it
        LiveDatabaseMissing
        LiveDatabaseBusy
        CorruptCapture
        ValidationFailed
        SchemaChangeRefused
        PathOutsideAnchor
      PublishError                  another writer, or the state of the dataset
        WriterBusy
        Superseded
        DatasetSealed
        DatasetDropped
        EngineMismatch
        IncarnationChanged
        RecoveryRequired
        Aborted
      ReaderError                   a reader; what it served before, it goes on serving
        SchemaIncompatible
        HandoffFailed
        EngineTooOld
        SnapshotDamaged
        DataDirBusy
        DiskFull
        ReadOnlyDataset
        NotLoaded
        QueryRefused
        QueryFailed
        QueryStopped
        TokenRefused
        NodeUnavailable
      MaintenanceError              an operator's command
        RetentionPolicyMissing
        RetentionBlocked
        SnapshotInUse
        ConfirmationRequired
        SidecarUnreadable
        SnapshotMissing

Each error carries a stable ``kind`` (its class name), a ``hint`` that says what to do next, and, where they are known,
the ``dataset`` and the ``operation_id``. All of them survive pickling, so they cross process borders intact.
"""

from __future__ import annotations

from typing import Any, ClassVar

__all__ = [
    "Aborted",
    "AccessDenied",
    "CaptureError",
    "ConfigurationError",
    "ConfirmationRequired",
    "Conflict",
    "CorruptCapture",
    "DataDirBusy",
    "DatasetDropped",
    "DatasetSealed",
    "DiskFull",
    "DocumentDamaged",
    "EngineMismatch",
    "EngineTooOld",
    "HandoffFailed",
    "IncarnationChanged",
    "InconsistentSnapshotSettings",
    "InvalidDatasetName",
    "LiveDatabaseBusy",
    "LiveDatabaseMissing",
    "MaintenanceError",
    "MissingExtra",
    "NodeUnavailable",
    "NotFound",
    "NotLoaded",
    "PathOutsideAnchor",
    "PublishError",
    "QueryFailed",
    "QueryRefused",
    "QueryStopped",
    "ReadOnlyDataset",
    "ReaderError",
    "RecoveryRequired",
    "RetentionBlocked",
    "RetentionPolicyMissing",
    "SchemaChangeRefused",
    "SchemaIncompatible",
    "SidecarUnreadable",
    "SnapshotAssetsError",
    "SnapshotDamaged",
    "SnapshotInUse",
    "SnapshotMissing",
    "StoreError",
    "StoreUnavailable",
    "Superseded",
    "TokenRefused",
    "UnsafeStore",
    "UnsupportedEngine",
    "UnsupportedFormatVersion",
    "UnsupportedLiveDatabase",
    "ValidationFailed",
    "WriterBusy",
]


class SnapshotAssetsError(Exception):
    """The root of all errors of this package.

    Args:
        message: what happened, in one sentence.
        hint: what to do next; the class's own advice when it is left out.
        dataset: the dataset that it happened to.
        operation_id: the operation that it happened to.
    """

    default_hint: ClassVar[str] = ""

    def __init__(
        self, message: str, *, hint: str | None = None, dataset: str | None = None, operation_id: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = self.default_hint if hint is None else hint
        self.dataset = dataset
        self.operation_id = operation_id

    @property
    def kind(self) -> str:
        """The class name: stable, and the same in Python, JSON and the logs."""
        return type(self).__name__

    def to_json(self) -> dict[str, str | None]:
        """The error as the command line and the reader node print it."""
        return {
            "kind": self.kind,
            "message": self.message,
            "hint": self.hint,
            "dataset": self.dataset,
            "operation_id": self.operation_id,
        }

    def __reduce__(self) -> tuple[Any, ...]:
        return _revive, (type(self), self.message, self.__dict__)


def _revive(cls: type[SnapshotAssetsError], message: str, state: dict[str, Any]) -> SnapshotAssetsError:
    error = cls(message)
    error.__dict__.update(state)
    return error


class ConfigurationError(SnapshotAssetsError):
    """What was asked for can not work; nothing was touched."""

    default_hint = "Correct the settings and try again."


class InvalidDatasetName(ConfigurationError):
    """The name can not serve as a Dagster asset name, a SQL identifier and a folder at once."""

    default_hint = "Use a lower-case letter, then up to 62 letters, digits or underscores, and no reserved word."


class UnsupportedEngine(ConfigurationError):
    """No engine of this name is known, or it can not capture this kind of database."""

    default_hint = "Choose one of the engines that this version publishes."


class UnsupportedLiveDatabase(ConfigurationError):
    """The file is not a database of the engine, or is in a form that can not be captured."""

    default_hint = "Point the dataset at a database file that the engine itself can open."


class MissingExtra(ConfigurationError):
    """An optional package is not installed."""

    default_hint = "Install the extra that the message names."


class InconsistentSnapshotSettings(ConfigurationError):
    """Two settings contradict each other."""


class StoreError(SnapshotAssetsError):
    """The object store, or a document in it."""


class NotFound(StoreError):
    """The key is not in the store."""

    default_hint = "Check the store's URL and prefix."


class Conflict(StoreError):
    """A condition of a write did not hold: somebody else wrote first."""

    default_hint = "Read the document again and decide anew."


class AccessDenied(StoreError):
    """The store does not permit this, or does not know who asks; nothing was changed."""

    default_hint = "Check the credentials, and that they may read, write, list and delete beneath the store's URL."


class UnsafeStore(StoreError):
    """The store accepts conditional writes and ignores their conditions; publishing to it would lose data."""

    default_hint = "Use a store with working If-None-Match and If-Match writes, such as Amazon S3 or a local folder."


class StoreUnavailable(StoreError):
    """The store did not answer, or not in time; what was asked of it may or may not have happened."""

    default_hint = "Check the network, the endpoint and the credentials, then try again."


class UnsupportedFormatVersion(StoreError):
    """A document was written by a newer version of this package; it was left untouched."""

    default_hint = "Upgrade snapshot-assets to read this store."


class DocumentDamaged(StoreError):
    """A document of the store can not be parsed, or breaks a limit; it was left untouched."""

    default_hint = "Restore the named object from a backup, or look at it with `snapshot-assets doctor`."


class CaptureError(SnapshotAssetsError):
    """The live database, or its staged copy; nothing was published."""


class LiveDatabaseMissing(CaptureError):
    """There is no live database at the path."""

    default_hint = "Build the database first, or correct the dataset's path."


class LiveDatabaseBusy(CaptureError):
    """Another program kept the live database in use for longer than the capture timeout."""

    default_hint = "Close the other connection, or raise the capture timeout."


class CorruptCapture(CaptureError):
    """The staged copy does not open, or fails the engine's own check."""

    default_hint = "Check the live database with its own engine."


class ValidationFailed(CaptureError):
    """A validator refused the staged copy; nothing was published. `results` has one entry a validator."""

    default_hint = "Repair the data, or change the validator."
    results: tuple[Any, ...] = ()


class SchemaChangeRefused(CaptureError):
    """The schema changed in a way that readers of the old one would not survive; nothing was published."""

    default_hint = "Publish with allow_schema_change=True when every reader is ready for it."


class PathOutsideAnchor(CaptureError):
    """A path leaves the folder that it belongs to, or is not portable."""

    default_hint = "Keep every file of a dataset beneath its own folder, under a plain relative name."


class PublishError(SnapshotAssetsError):
    """Another writer, or the state of the dataset, stood in the way of a publish."""


class WriterBusy(PublishError):
    """Another writer holds the dataset's lease."""

    default_hint = "Wait for the other writer, or ask to wait for it."


class Superseded(PublishError):
    """Another writer claimed the dataset while this one was at work; nothing of this one is visible."""

    default_hint = "Publish again."


class DatasetSealed(PublishError):
    """The dataset is sealed and takes no writers."""

    default_hint = "Unseal it, or finish dropping it."


class DatasetDropped(PublishError):
    """The dataset was dropped; publishing does not bring it back."""

    default_hint = "Recreate it on purpose if it should live again."


class EngineMismatch(PublishError):
    """The dataset was published by another engine."""

    default_hint = "Publish under another name, or drop and recreate the dataset."


class IncarnationChanged(PublishError):
    """The dataset was dropped and recreated while this writer was at work."""

    default_hint = "Publish again, to the new incarnation."


class RecoveryRequired(PublishError):
    """Whether the operation became visible could not be learned; the next writer finds out and settles it."""

    default_hint = "Publish again: the next writer settles the named operation first."


class Aborted(PublishError):
    """The writing was aborted by its own program; nothing of it became visible."""

    default_hint = "Publish again; the next writer settles what this one left."


class ReaderError(SnapshotAssetsError):
    """A reader; whatever it served before, it goes on serving."""


class SchemaIncompatible(ReaderError):
    """The new snapshot's schema does not fit what this reader accepts; nothing was downloaded."""

    default_hint = "Change the reader's schema policy, or roll the dataset back."


class HandoffFailed(ReaderError):
    """What is kept beside the data did not pass to the new generation. `outcomes` has one entry a hand-off."""

    default_hint = "Repair the hand-off that the message names, or remove it; every later refresh tries again."
    outcomes: tuple[Any, ...] = ()


class EngineTooOld(ReaderError):
    """This reader's engine can not open the snapshot; nothing was downloaded."""

    default_hint = "Upgrade the engine's package on the reader."


class SnapshotDamaged(ReaderError):
    """An object of the snapshot is missing, or its bytes do not have the digest that the manifest names."""

    default_hint = "Roll back to a snapshot that verifies, then publish again."


class DataDirBusy(ReaderError):
    """Another process uses the reader's data folder."""

    default_hint = "Give each reader process a data folder of its own."


class DiskFull(ReaderError):
    """The snapshot would not fit on the reader's disk; nothing was downloaded."""

    default_hint = "Free disk space, or lower keep_local."


class ReadOnlyDataset(ReaderError):
    """A reader was asked to write."""

    default_hint = "Write to the live database and publish."


class NotLoaded(ReaderError):
    """The reader has no snapshot of the dataset yet."""

    default_hint = "Publish the dataset, or wait for the first refresh."


class QueryRefused(ReaderError):
    """The reader node does not run statements of this kind."""

    default_hint = "Send one SELECT, or the EXPLAIN of one."


class TokenRefused(ReaderError):
    """The reader node does not know the token, or the token does not admit to what was asked."""

    default_hint = "Send a token of this node as `Authorization: Bearer TOKEN`."


class NodeUnavailable(ReaderError):
    """The reader node can not be reached, is stopping, or has as much to do as it may."""

    default_hint = "Try again in a moment."


class QueryFailed(ReaderError):
    """The statement is of an allowed kind, and could not be run."""

    default_hint = "Correct the statement or its parameters."


class QueryStopped(ReaderError):
    """The query was stopped before its end: cancelled, or over a limit of the node."""

    default_hint = "Ask for less at once, or raise the node's limits."


class MaintenanceError(SnapshotAssetsError):
    """An operator's command could not be carried out; nothing was changed."""


class RetentionPolicyMissing(MaintenanceError):
    """A cleanup was asked for without saying what to keep."""

    default_hint = "Give keep, older_than, or both."


class RetentionBlocked(MaintenanceError):
    """Every snapshot that could make room is protected."""

    default_hint = "Remove a pin, or raise max_snapshots."


class SnapshotInUse(MaintenanceError):
    """Somebody still needs the snapshot or the dataset."""

    default_hint = "Remove the pin, or stop the reader, that the message names."


class ConfirmationRequired(MaintenanceError):
    """The command changes or removes data and was not confirmed."""

    default_hint = "Look at the plan, then confirm."


class SidecarUnreadable(MaintenanceError):
    """A sidecar can not be read or understood; it was kept, and writing waits until it is settled."""

    default_hint = "Upgrade snapshot-assets if a newer version wrote it; else inspect the named object."


class SnapshotMissing(MaintenanceError):
    """The head lists no snapshot of this id."""

    default_hint = "List the dataset's snapshots and choose one of them."
