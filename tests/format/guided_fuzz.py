"""Fuzzing that is guided by coverage: atheris looks for documents that take new ways through the parsers.

    python -m tests.format.guided_fuzz head -runs=100000

The first argument names the kind of document; the others are libFuzzer's.
"""

from __future__ import annotations

import sys
import tempfile
from importlib import import_module
from pathlib import Path

# By its name, since it is in no environment but that of the long tests.
atheris = import_module("atheris")

with atheris.instrument_imports(
    include=["snapshot_assets.model", "snapshot_assets.content", "snapshot_assets.engines"]
):
    from snapshot_assets.errors import SnapshotAssetsError
    from tests.format.mutations import samples


def main(kind: str, *arguments: str) -> None:
    """Fuzz one kind of document; anything but a typed error ends the process with the input that caused it."""
    sample = {sample.name: sample for sample in samples()}[kind]

    def look(data: bytes) -> None:
        try:
            sample.parse(data)
        except SnapshotAssetsError:
            return

    with tempfile.TemporaryDirectory() as corpus:
        Path(corpus, "real").write_bytes(sample.data)
        limits = ["-rss_limit_mb=1024", "-timeout=10"]
        atheris.Setup([sys.argv[0], corpus, f"-artifact_prefix={corpus}/", *limits, *arguments], look)
        atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
