"""Named data sets and files to tensors and splits.

``load`` reads a set, ``make_splits`` says who trains, tunes and tests, ``Preprocess`` learns from
training rows how to make tensors, and ``read_rows`` reads rows to predict.
"""

from sitout._optional import needs

with needs("study", "sitout.data"):
    from sitout.data._dataset import DataSet
    from sitout.data._fault import DataError
    from sitout.data._load import load
    from sitout.data._preprocess import Preprocess
    from sitout.data._rows import read_rows
    from sitout.data._splits import Split, Splits, make_splits

__all__ = [
    "DataError",
    "DataSet",
    "Preprocess",
    "Split",
    "Splits",
    "load",
    "make_splits",
    "read_rows",
]
