"""Monte-Carlo inference: dropout left on at prediction tells what a network does not know."""

from ._compare import compare
from ._comparison import Comparison
from ._predict import predict
from ._prediction import Prediction

__all__ = ["Comparison", "Prediction", "compare", "predict"]
