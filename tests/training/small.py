"""A run that takes a second: tiny parts, a handful of drawn images, some text without images."""

import json
from pathlib import Path
from typing import Any

from beni.config import RunConfig, run_config_from_dict

SHAPES = "shapes?images=12"


ENCODER = {"name": "tiny", "size": 16, "stem": [8, 16], "blocks": [0, 0], "width": 16, "layers": 1, "heads": 2}


def text_file(folder: Path, items: int = 12) -> str:
    """Text-only conversations in LLaVA JSON; returns the data spec."""
    path = folder / "text.json"
    talk = [[f"say {n} twice", f"{n} {n}"] for n in range(items)]
    path.write_text(
        json.dumps(
            [
                {"id": f"t{n}", "conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]}
                for n, (q, a) in enumerate(talk)
            ]
        )
    )
    return f"llava:{path}"


def small_run(out: Path, **changes: dict[str, Any]) -> RunConfig:
    """A configuration; `changes` are tables merged over it."""
    tables: dict[str, Any] = {
        "encoders": {"main": ENCODER},
        "llm": {"name": "tiny", "width": 32, "layers": 2, "heads": 2, "ff_width": 48},
        "data": {"data": [SHAPES], "eval_limit": 8, "workers": 0},
        "batch": {"rows": 2, "row_tokens": 512},
        "optim": {"steps": 4, "lr": 1e-3},
        "run": {"out": str(out), "device": "cpu", "log_every": 1, "eval_every": 4},
    }
    for table, values in changes.items():
        tables[table] = {**tables.get(table, {}), **values}
    return run_config_from_dict(tables)


XATTN = {
    "connector": {"name": "perceiver", "num_latents": 4, "depth": 1, "heads": 2, "head_width": 8},
    "fusion": {"name": "xattn", "heads": 2, "head_width": 8},
}
"""Tables of a small cross-attention model."""
INLINE: dict[str, dict[str, Any]] = {"connector": {"name": "mlp"}, "fusion": {"name": "inline"}}
FUSIONS = {"inline": INLINE, "xattn": XATTN}
