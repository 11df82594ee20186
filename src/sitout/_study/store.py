"""The folder of a study: a finished run is a file, written whole or not at all."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from .errors import StudyError

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failing disk into one clear line.

    Raises:
        StudyError: the system refused to write below ``path``.
    """
    try:
        yield
    except OSError as error:
        raise StudyError(
            f"Cannot write {path}: {error.strerror or error}. Make room or choose another --out, "
            "then run the same command again: what had finished is kept."
        ) from error


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Within the block, no other study may use the folder.

    Raises:
        StudyError: one does.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise StudyError(
                f"{folder} must be used by one study at a time. Another one is running in it; wait "
                "for it or choose another --out."
            ) from None
    try:
        yield
    finally:
        lock.release()


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole, or not at all.

    Raises:
        StudyError: the system refused.
    """
    part = path.with_name(f".{path.name}.part")
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except OSError:
            part.unlink(missing_ok=True)
            raise


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file whole, or not at all.

    Raises:
        StudyError: the system refused.
    """
    write_bytes(path, json.dumps(content, indent=1, allow_nan=False).encode())


def read_json(path: Path) -> dict[str, Any] | None:
    """Return what a JSON file holds; None if it is missing or torn.

    Raises:
        StudyError: the system refused to read it.
    """
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    except OSError as error:
        raise StudyError(f"Cannot read {path}: {error.strerror or error}.") from error
    return content if isinstance(content, dict) else None
