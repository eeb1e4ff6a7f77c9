"""Train and explain small networks on MNIST, and read handwritten digits with them.

    >>> from mnist import MNISTPredictor
    >>> MNISTPredictor("MNIST-MODEL.pth").predict("my-seven.jpg").digit
    7

The names in `__all__` are imported on first use, so `import mnist` itself costs nothing. Every
other public name is imported from its module; CONTRIBUTING.md has the map of the modules.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# PyTorch's threads busy-wait for each other before they sleep. On a loaded machine that takes time from the others, so
# the wait is short here. It takes effect on Linux, where PyTorch is imported after this.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

if TYPE_CHECKING:
    from mnist.networks import MNIST_CNN
    from mnist.picture import PictureError, to_mnist
    from mnist.predict import MNISTPredictor, Prediction
    from mnist.weights import WeightsError, load_weights, save_weights

# where each name is defined
_HOMES = {"MNIST_CNN": "networks", "MNISTPredictor": "predict", "PictureError": "picture", "Prediction": "predict",
         "WeightsError": "weights", "load_weights": "weights", "save_weights": "weights", "to_mnist": "picture"}
__all__ = ["MNIST_CNN", "MNISTPredictor", "PictureError", "Prediction", "WeightsError", "load_weights",
           "save_weights", "to_mnist"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mnist' has no attribute {name!r}")
    return getattr(import_module(f"mnist.{_HOMES[name]}"), name)
