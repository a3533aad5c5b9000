"""What `import blora` offers: training, loading, and a model that answers in this process."""

from blora.front_door.functions import bayesianize, load, train
from blora.front_door.model import Model

__all__ = ["Model", "bayesianize", "load", "train"]
