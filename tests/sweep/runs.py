"""Runs that never were: results and answers as a sweep finds them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from beni.config import run_config_from_dict
from beni.eval.answers import Answer
from beni.sweep.cells import Cell
from beni.sweep.standings import Ran

PER_IMAGE = 4
"""Items about one image."""


def cell(connector: str = "mlp", lr: float = 2e-4, varied: Mapping[str, str] | None = None) -> Cell:
    config = run_config_from_dict(
        {"connector": {"name": connector}, "data": {"data": ["shapes?images=40"]}, "optim": {"lr": lr}}
    )
    return Cell(varied or {"connector": connector}, config)


def answered(correct: Sequence[bool], data: str = "d") -> list[Answer]:
    return [
        Answer(
            data=data,
            id=str(n),
            images=f"image {n // PER_IMAGE}",
            prediction="yes" if right else "<no>",
            target="yes",
            score=float(right),
            blind="no",
            blind_score=0.0,
            tags={"type": "odd" if n % 2 else "even"},
        )
        for n, right in enumerate(correct)
    ]


def ran(
    correct: Sequence[bool], flops: float = 1e6, seed: int = 0, folder: Path = Path("runs/x"), **figures: Any
) -> Ran:
    result: dict[str, Any] = {
        "accuracy": float(np.mean(correct)) if len(correct) else None,
        "accuracy_blind": 0.1 if len(correct) else None,
        "flops_per_sample": flops,
        "samples_per_s": 100.0,
        "peak_memory_bytes": 2**30,
        "visual_tokens_per_image": 16.0,
        "steps": 10,
        "measured_steps": 10,
        "train_s": 1.0,
        "parameters": {"total": 1000, "trainable": 500},
        **figures,
    }
    return Ran(seed, folder, result, answered(correct))


def captioned(scores: Sequence[float], seed: int = 0, folder: Path = Path("runs/x"), **figures: Any) -> Ran:
    """A run that was judged on captions alone, with what each of them got."""
    answers = [
        replace(answer, score=each, metric="caption")
        for answer, each in zip(answered([False] * len(scores)), scores, strict=True)
    ]
    told = {"cider": float(np.mean(scores)), "cider_blind": 0.05, "bleu4": 0.25, "bleu4_blind": 0.01}
    run = ran([], seed=seed, folder=folder, **told, **figures)
    return replace(run, answers=answers)
