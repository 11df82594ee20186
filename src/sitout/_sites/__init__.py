"""What a model really executes: the probe of its stochastic sites."""

from ._probe import sites
from ._site import Measured, Site, Sites

__all__ = ["Measured", "Site", "Sites", "sites"]
