"""beni: which vision-language architecture is better, and what does it cost?

`import beni` registers the model with transformers' Auto classes, so that
`AutoModelForImageTextToText.from_pretrained(folder)` loads what a run saved.
"""

from beni.errors import BeniError
from beni.model.config import BeniConfig
from beni.model.modeling import BeniForConditionalGeneration
from beni.model.processing import BeniProcessor

__version__ = "0.1.0"
__all__ = ["BeniConfig", "BeniError", "BeniForConditionalGeneration", "BeniProcessor", "__version__"]
