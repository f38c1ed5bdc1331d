"""Quantized bases: what is kept of a weight, that it stays as it is, and that what is saved computes what was trained."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint import FileSystemReader
from transformers import AutoModelForImageTextToText, GPT2Config, GPT2LMHeadModel

from beni.config import OptimConfig, PeftOptions, run_config_from_dict
from beni.data.loader import Rows
from beni.errors import CheckpointError, ConfigError
from beni.model.build import Built, build
from beni.options import Quantization
from beni.testing.launch import run_ranks
from beni.testing.sharded import rows
from beni.training import freeze, outputs, prepare
from beni.training.adapters import add_adapters
from beni.training.quantize import GROUP, PART, SCHEMES, QuantizedLinear, check, quantize, quantized_layers
from beni.training.run import train
from tests.training.small import small_run

CPU = torch.device("cpu")
LLM = {"name": "tiny", "width": 64, "layers": 2, "heads": 2, "ff_width": 128}
"""Widths that the groups divide."""


def _needs(scheme: str) -> Any:
    package = SCHEMES[scheme].package
    return pytest.param(scheme, marks=pytest.mark.skipif(find_spec(package) is None, reason=f"needs {package}"))


EVERY = [_needs(scheme) for scheme in SCHEMES]
needs_hqq = pytest.mark.skipif(find_spec("hqq") is None, reason="needs hqq")
FOUR_BITS = [_needs("hqq4"), _needs("nf4")]
LIMITS = {"hqq8": 0.01, "hqq4": 0.12, "nf4": 0.12}
"""Largest errors of a weight drawn from a normal distribution, in shares of its norm."""


def made(tmp_path: Path, **llm: Any) -> Built:
    torch.manual_seed(0)
    return build(small_run(tmp_path, llm=LLM | llm), ["what color is the shape? red"])


def quantized(tmp_path: Path, scheme: str, **peft: Any) -> Built:
    """A small model with quantized weights and adapters that compute something."""
    built = made(tmp_path)
    quantize(built.model, scheme, CPU)
    add_adapters(built.model, PeftOptions(**peft))
    with torch.no_grad():
        for name, parameter in built.model.named_parameters():
            if "lora_B" in name or "magnitude" in name:
                parameter.add_(0.3 * torch.rand_like(parameter))
    return built
