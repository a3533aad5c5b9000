"""Training, loading, and a model that answers in this process: the names that `import blora` offers."""

from blora.front_door.functions import bayesianize, load, train
from blora.front_door.model import Model

__all__ = ["Model", "bayesianize", "load", "train"]
