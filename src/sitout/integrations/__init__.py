"""What ties sitout to training loops: callbacks for trainers, and a guard for any loop.

``sitout.integrations.lightning`` and ``sitout.integrations.huggingface`` hold a
``DropoutCallback`` each, and ``sitout.integrations.sklearn`` a classifier and a regressor. They
import their trainer, so import them by their full name.
"""

from ._guard import guard

__all__ = ["guard"]
