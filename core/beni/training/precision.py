"""In which precision a model is computed."""

from typing import Any

import torch

from beni.model.modeling import BeniForConditionalGeneration
from beni.processes import Processes

WIDE = 256
"""From this width of the language model on, bf16 is faster than fp32 on CPUs that multiply it (docs/performance.md)."""


def precision(
    wanted: str, model: BeniForConditionalGeneration, processes: Processes, begun: torch.dtype | None = None
) -> torch.dtype:
    """The dtype of the computation; parameters are kept in fp32. What the first process says goes for all.

    Args:
        wanted: `fp32`, `bf16`, or `auto`: that of the run that is continued, else bf16 where it is faster.
        begun: in which the run that is continued was computed.
    """
    if wanted == "auto" and begun is not None:
        return begun
    if wanted == "auto":
        wanted = processes.from_main("bf16" if _gains(model, processes.device) else "fp32")
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[wanted]


def _gains(model: BeniForConditionalGeneration, device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    table: Any = model.get_input_embeddings()
    return _multiplied_by_cpu() and table.weight.shape[1] >= WIDE


def _multiplied_by_cpu() -> bool:
    """Whether the CPU has instructions that multiply bf16: AMX, or AVX512-BF16."""
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
