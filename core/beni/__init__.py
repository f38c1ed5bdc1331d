"""beni: which vision-language architecture is better, and what does it cost?

`import beni` registers the model with transformers' Auto classes, so that
`AutoModelForImageTextToText.from_pretrained(folder)` loads what a run saved.
"""

from importlib.metadata import version

from beni import openmp  # noqa: F401  before torch
from beni.api import configure
from beni.errors import BeniError
from beni.model.build import build
from beni.model.config import BeniConfig
from beni.model.modeling import BeniForConditionalGeneration
from beni.model.processing import BeniProcessor
from beni.training.run import train
from beni.training.stages import train_stages

__version__ = version("beni")
__all__ = [
    "BeniConfig",
    "BeniError",
    "BeniForConditionalGeneration",
    "BeniProcessor",
    "__version__",
    "build",
    "configure",
    "train",
    "train_stages",
]
