"""The same model on the same samples: beni against transformers' own LLaVA, in a plain loop and under Trainer.

    python benchmarks/compare.py --out runs/compare

SmolLM2-135M under CLIP ViT-B/32, whose weights are drawn and frozen; connector and language model are trained. Losses
are compared first: all three compute one function. Then the contenders take turns, window by window; Trainer with the
micro-batch that was best for it.
"""

import json
import multiprocessing
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
import tyro
from contenders import Contest, Stretch, beni, plain, trainer
from samples import Sizes, write_encoder, write_samples

MICRO_BATCHES = (1, 2, 4, 8)


@dataclass(frozen=True, slots=True)
class Options:
    """beni against transformers' own LLaVA: speed and memory of the same training."""

    out: str = "runs/compare"
    """Folder for compare.json."""
    llm: tuple[str, ...] = ("smollm2",)
    """The language model, as `--llm` takes it, and options of it."""
    windows: int = 5
    """Windows that each contender runs in turn, behind one that does not count."""
    window: int = 4
    """Steps of a window."""
    agree: int = 20
    """Steps over which losses are compared, in fp32 and in bf16."""
    sizes: Sizes = field(default_factory=Sizes)


class Contender:
    """A process that trains when it is its turn."""

    def __init__(self, name: str, run: Callable[..., None], contest: Contest, *arguments: int) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=run, args=(contest, theirs, *arguments))
        self.process.start()
        theirs.close()
        self.pipe.recv()

    def go(self) -> Stretch:
        """Let it train for a window."""
        self.pipe.send("go")
        return self.pipe.recv()

    def end(self) -> None:
        """Behind its last window."""
        self.pipe.send("go")
        self.process.join()


def main(options: Options) -> dict[str, Any]:
    """Compare, print, and write compare.json; returns what is in it."""
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        encoder = write_encoder(Path(work) / "encoder", options.sizes)
        data = write_samples(Path(work) / "data", options.sizes)
        llm = ("--llm", *options.llm)
        contest = Contest(str(encoder), str(data), f"{work}/run", llm, "auto", 0, options.window)
        agreement = {dtype: agree(replace(contest, dtype=dtype), options.agree) for dtype in ("fp32", "bf16")}
        grid = {size: alone(contest, 2, size) for size in MICRO_BATCHES}
        best = max(grid, key=lambda size: grid[size])
        print("Trainer, samples/s by micro-batch:", ", ".join(f"{size}: {speed:.3g}" for size, speed in grid.items()))
        stretches = race(contest, options.windows, best)
    result = summary(stretches) | {"agreement": agreement, "trainer_grid": grid, "trainer_micro_batch": best}
    result["machine"] = {"threads": torch.get_num_threads(), "torch": torch.__version__}
    (out / "compare.json").write_text(json.dumps(result, indent=2) + "\n")
    print(told(result))
    return result


def agree(contest: Contest, steps: int) -> float:
    """Largest relative difference of the losses of beni and of the plain loop."""
    contest = replace(contest, steps=steps, window=steps)
    losses = []
    for name, run in (("beni", beni), ("plain", plain)):
        contender = Contender(name, run, contest)
        losses.append(contender.go().losses)
        contender.end()
    worst = max(abs(ours / theirs - 1) for ours, theirs in zip(*losses, strict=True))
    print(f"losses of {steps} steps in {contest.dtype} differ by at most {worst:.1e}", file=sys.stderr)
    return worst


def alone(contest: Contest, windows: int, micro_batch: int) -> float:
    """Samples per second of Trainer with a micro-batch, without its first window."""
    contender = Contender("trainer", trainer, replace(contest, steps=windows * contest.window), micro_batch)
    speeds = [contender.go().samples_per_s for _ in range(windows)]
    contender.end()
    return median(speeds[1:])


def race(contest: Contest, windows: int, micro_batch: int) -> dict[str, list[Stretch]]:
    """All three in turn; without each one's first window."""
    contest = replace(contest, steps=(windows + 1) * contest.window)
    contenders = [
        Contender("beni", beni, contest),
        Contender("plain", plain, contest),
        Contender("trainer", trainer, contest, micro_batch),
    ]
    stretches: dict[str, list[Stretch]] = {contender.name: [] for contender in contenders}
    for _ in range(windows + 1):
        for contender in contenders:
            stretches[contender.name].append(contender.go())
    for contender in contenders:
        contender.end()
    return {name: each[1:] for name, each in stretches.items()}


def summary(stretches: Mapping[str, Sequence[Stretch]]) -> dict[str, Any]:
    """Medians of each, and beni by the best other."""
    contenders = {
        name: {
            "samples_per_s": median(stretch.samples_per_s for stretch in each),
            "windows": [stretch.samples_per_s for stretch in each],
            "peak_memory_bytes": max(stretch.peak_memory_bytes for stretch in each),
        }
        for name, each in stretches.items()
    }
    others = [each for name, each in contenders.items() if name != "beni"]
    speed = contenders["beni"]["samples_per_s"] / max(each["samples_per_s"] for each in others)
    memory = contenders["beni"]["peak_memory_bytes"] / min(each["peak_memory_bytes"] for each in others)
    return {"samples_per_s_ratio": speed, "peak_memory_ratio": memory, "contenders": contenders}


def told(result: Mapping[str, Any]) -> str:
    """A table for the terminal."""
    lines = [
        f"{name:<8} {each['samples_per_s']:>8.3g} samples/s {each['peak_memory_bytes'] / 2**30:>6.2f} GiB"
        for name, each in result["contenders"].items()
    ]
    ratios = (
        f"beni / the best other: speed {result['samples_per_s_ratio']:.2f}, memory {result['peak_memory_ratio']:.2f}"
    )
    return "\n".join([*lines, ratios])


if __name__ == "__main__":
    main(tyro.cli(Options))
