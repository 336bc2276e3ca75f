"""Where the paths that users give really lead."""

from __future__ import annotations

from pathlib import Path

import pytest

from snapshot_assets.errors import ConfigurationError
from snapshot_assets.paths import real_path


def test_links_and_dots_are_followed_and_nothing_need_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    for path in ("link/../link/a", Path("folder/a"), tmp_path / "link" / "a"):
        assert real_path(path) == tmp_path.resolve() / "folder" / "a"
    (tmp_path / "file").touch()
    assert real_path("file/a") == tmp_path.resolve() / "file" / "a"


@pytest.mark.parametrize("path", ["a\0b", "\ud800"])
def test_what_is_no_path_is_refused(path: str) -> None:
    with pytest.raises(ConfigurationError, match="not a path"):
        real_path(path)


@pytest.mark.parametrize("name", ["loop", "loop/a"])
def test_links_without_an_end_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ConfigurationError, match="loop"):
        real_path(tmp_path / name)
