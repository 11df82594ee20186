import os
from contextlib import contextmanager
from pathlib import Path

import pytest

from sitout.data import DataError


@pytest.fixture
def refused():
    """A context in which a DataError of one line must come, with these words in it."""

    @contextmanager
    def check(*words):
        with pytest.raises(DataError) as caught:
            yield
        text = str(caught.value)
        assert len(text.splitlines()) == 1
        for word in words:
            assert word in text

    return check


@pytest.fixture
def write(tmp_path):
    """Write a file of text or bytes and return its path."""

    def write_file(content, name="table.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write_file


@pytest.fixture
def image_dir():
    """The folder with the published MNIST and Fashion-MNIST files."""
    beside = Path(__file__).parents[3] / "shared" / "data"
    folder = Path(os.environ.get("SITOUT_DATA") or beside)
    if not (folder / "mnist").is_dir():
        pytest.skip("needs the MNIST files: set SITOUT_DATA to the folder that has mnist/ in it")
    return folder
