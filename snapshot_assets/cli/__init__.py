"""The command line, `snapshot-assets`: one module per group of verbs.

Every module here is imported at each start, so each imports what it needs to do its work only when it does it.
"""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Run the command that this process was started with, and exit with its code."""
    from snapshot_assets.cli.app import app

    app(prog_name="snapshot-assets")
