"""Files that are there whole, or not at all."""

from __future__ import annotations

import errno
import resource
import signal
from pathlib import Path

import pytest

from sitout._study import store
from sitout._study.errors import StudyError


def test_json_comes_back(tmp_path):
    store.write_json(tmp_path / "deep" / "a.json", {"x": [1, 2.5, None]})
    assert store.read_json(tmp_path / "deep" / "a.json") == {"x": [1, 2.5, None]}


def test_a_missing_or_torn_file_counts_as_not_written(tmp_path):
    (tmp_path / "torn.json").write_text('{"x": [1, 2')
    (tmp_path / "list.json").write_text("[1]")
    for name in ("none.json", "torn.json", "list.json"):
        assert store.read_json(tmp_path / name) is None


def test_a_full_disk_keeps_the_old_file_and_leaves_no_part(tmp_path):
    path = tmp_path / "a.json"
    store.write_json(path, {"x": 1})
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, old[1]))
        with pytest.raises(StudyError, match=r"Cannot write .*a\.json.*same command again"):
            store.write_bytes(path, b"x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert store.read_json(path) == {"x": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_the_system_s_reason_is_told(tmp_path, monkeypatch):
    def full(self, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(StudyError, match="No space left on device") as caught:
        store.write_json(tmp_path / "a.json", {})
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_numbers_that_json_does_not_know_are_never_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not list(tmp_path.iterdir())
