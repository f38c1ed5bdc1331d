"""Every connector × fusion × view that is installed: trained, saved, reloaded, and asked; or refused, and why.

`python -m tests.model.cube` writes docs/compatibility.md.
"""

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText

from beni.data.batch import pack
from beni.errors import IncompatiblePartsError
from beni.registry import available
from beni.testing.small import CONVERSATIONS, ENCODER, SEVERAL_LAYERS, inputs, make

PAGE = Path(__file__).parents[2] / "docs" / "compatibility.md"
KINDS = ("connector", "fusion", "view")
SMALL: dict[str, dict[str, Any]] = {
    "connector perceiver": {"num_latents": 4, "depth": 1, "heads": 2, "head_width": 8},
    "connector qformer": {"num_queries": 4, "width": 16, "heads": 2},
    "connector cabstractor": {"side": 2, "width": 16},
    "connector sva": {"sides": [2], "width": 16, "heads": 2, "depth": 1},
    "connector dragonfly": {"pool": 2},
    "fusion xattn": {"heads": 2, "head_width": 8},
    "fusion sva": {"heads": 2},
}
"""Options that make parts small; everything else is as it comes."""
AROUND = {"fusion deepstack": {"encoders": {"main": ENCODER | SEVERAL_LAYERS}}}
"""Other parts of the model, where one cannot do with what is there."""
NEW_TOKENS = 4


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a combination; `refusal` is empty for one that works."""

    parts: tuple[str, str, str]
    refusal: str = ""


def built_in() -> Iterator[tuple[str, str, str]]:
    """All combinations of beni's own parts."""
    yield from product(
        *([plugin.name for plugin in available(kind) if plugin.distribution == "beni"] for kind in KINDS)
    )  # type: ignore[misc]


def combine(parts: tuple[str, str, str]) -> Outcome:
    """Two steps on text, one image and several; then the saved model must say what the trained one says."""
    tables = {k: {"name": n, **SMALL.get(f"{k} {n}", {})} for k, n in zip(KINDS, parts, strict=True)}
    for kind, name in zip(KINDS, parts, strict=True):
        tables |= AROUND.get(f"{kind} {name}", {})
    torch.manual_seed(0)
    try:
        built = make(batch={"row_tokens": 1 << 20}, **tables)
    except IncompatiblePartsError as error:
        return Outcome(parts, str(error))
    documents = [built.composer.compose(sample) for sample in CONVERSATIONS]
    row = pack([documents[:3], *([document] for document in documents[3:])], built.composer)
    optimizer = torch.optim.AdamW(built.model.parameters(), lr=1e-2)
    losses = []
    for _ in range(3):
        loss = built.model(packed=row).loss
        losses.append(float(loss))
        loss.backward()
        assert all(parameter.grad is not None for parameter in built.model.parameters())
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0], f"{parts} do not learn: {losses}"
    built.model.eval()
    with tempfile.TemporaryDirectory() as folder:
        built.model.save_pretrained(folder)
        again = AutoModelForImageTextToText.from_pretrained(folder).eval()
    batch = inputs(built, CONVERSATIONS)
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS}
    assert torch.equal(again.generate(**batch, **options), built.model.generate(**batch, **options))
    return Outcome(parts)


def page(outcomes: list[Outcome]) -> str:
    """The table as Markdown."""
    views = list(dict.fromkeys(outcome.parts[2] for outcome in outcomes))
    reasons = list(dict.fromkeys(outcome.refusal for outcome in outcomes if outcome.refusal))
    cells = {o.parts: f"[{reasons.index(o.refusal) + 1}]" if o.refusal else "yes" for o in outcomes}
    lines = [
        "# What goes with what",
        "",
        "Every connector × fusion × view, small and with one encoder. *yes*: it was trained on rows that mix text,",
        "single images and several, saved, reloaded through `AutoModel`, and generated the same text. A number: it was",
        "refused before anything was allocated, with the message below. `python -m tests.model.cube` writes this page,",
        "and the tests compare it.",
        "",
        "| connector | fusion | " + " | ".join(views) + " |",
        "|" + "---|" * (2 + len(views)),
    ]
    for connector, fusion in dict.fromkeys(outcome.parts[:2] for outcome in outcomes):
        row = " | ".join(cells[connector, fusion, view] for view in views)
        lines.append(f"| `{connector}` | `{fusion}` | {row} |")
    lines += ["", *(f"{number}. {reason}" for number, reason in enumerate(reasons, start=1))]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    PAGE.write_text(page([combine(parts) for parts in built_in()]), encoding="utf-8")
