"""What a part is, a file for each kind. A plugin author needs this package and `beni.nn`.

A part is a class with a frozen dataclass `Config` nested in it and `beni_api = 1`. It knows nothing of FSDP, of
checkpoints, of the loop. Its config answers every question about *counts* as a pure function, because data workers need
the answers before any weight exists; the module does the computing.

    View           how an image of some size is cut into crops
    VisionEncoder  crops -> features
    Connector      features -> visual tokens: what grid a grid becomes, and what tokens a crop becomes
    Fusion         visual tokens ⇄ language model
    LanguageModel  where a causal LM and its tokenizer come from
    Source         where samples come from

Arranging crops, counting, packing, dummy documents and generation happen in core, once.
"""

from beni.config import Part
from beni.errors import PluginError
from beni.interfaces.connector import Connector, ConnectorConfig, WindowSpec
from beni.interfaces.encoder import VisionEncoder
from beni.interfaces.fusion import (
    Fusion,
    FusionConfig,
    FusionContext,
    Insert,
    InTextConfig,
    LLMSpec,
    Newline,
    Reads,
    VisualSpec,
    spell_blocks,
)
from beni.interfaces.llm import LanguageModel
from beni.interfaces.native import NativeProjector, NativeTower
from beni.interfaces.source import Reading, Source, Stream
from beni.interfaces.view import View
from beni.pretrained import Provenance

__all__ = [
    "INTERFACES",
    "Connector",
    "ConnectorConfig",
    "Fusion",
    "FusionConfig",
    "FusionContext",
    "InTextConfig",
    "Insert",
    "LLMSpec",
    "LanguageModel",
    "NativeProjector",
    "NativeTower",
    "Newline",
    "Provenance",
    "Reading",
    "Reads",
    "Source",
    "Stream",
    "View",
    "VisionEncoder",
    "VisualSpec",
    "WindowSpec",
    "load",
    "spell_blocks",
]

INTERFACES: dict[str, type] = {
    "encoder": VisionEncoder,
    "connector": Connector,
    "fusion": Fusion,
    "view": View,
    "llm": LanguageModel,
    "source": Source,
}


def load(kind: str, part: Part) -> type:
    """The class of a part, checked against the interface of its kind.

    Raises:
        PluginError: the class is not one.
    """
    cls = part.load()
    if not issubclass(cls, INTERFACES[kind]):
        raise PluginError(
            f"{kind} '{part.plugin.name}' ({part.plugin.target}) does not derive from "
            f"beni.interfaces.{INTERFACES[kind].__name__}"
        )
    return cls
