"""hlb: trains a network on CIFAR-10 to 94 % in as little time as possible, and measures that honestly.

import hlb
result = hlb.train("record94", runs=3, save="model.pt")
result.accuracy["mean"], result.train_seconds["ci95"]
hlb.load("model.pt").predict(images)    # uint8 [n, 32, 32, 3] -> classes
"""

import time

STARTED = time.perf_counter()  # before torch is imported, so that wall clocks can include that

from .data import Dataset  # noqa: E402
from .errors import UserError  # noqa: E402
from .execution import Execution  # noqa: E402
from .recipes import RECIPES, Recipe  # noqa: E402
from .runs.callbacks import TensorBoard  # noqa: E402
from .runs.checkpoint import load as load_checkpoint  # noqa: E402
from .runs.classifier import Classifier, load  # noqa: E402
from .runs.experiment import Result, train  # noqa: E402
from .settings import recipe  # noqa: E402
from .train import Callback  # noqa: E402

__all__ = [
    "RECIPES",
    "Callback",
    "Classifier",
    "Dataset",
    "Execution",
    "Recipe",
    "Result",
    "TensorBoard",
    "UserError",
    "load",
    "load_checkpoint",
    "recipe",
    "train",
]
__version__ = "0.1.0"
