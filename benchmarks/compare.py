"""The same model on the same samples: beni against transformers' own LLaVA, in a plain loop and under Trainer.

    python benchmarks/compare.py --out runs/compare

SmolLM2-135M under CLIP ViT-B/32, whose weights are drawn and frozen; connector and language model are trained. Losses
are compared first: they compute one function. Then beni, all defaults, and each of the others take turns, window by
window; the others in the dtype, and Trainer with the micro-batch, that was best for it. Two at a time are in memory.
"""

import json
import multiprocessing
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
import tyro
from contenders import Contest, Stretch, beni, plain, trainer
from samples import Sizes, write_encoder, write_samples

MICRO_BATCHES = (1, 2, 4, 8)
DTYPES = ("fp32", "bf16")
"""Of the others, under autocast: which is faster depends on the processor."""


@dataclass(frozen=True, slots=True)
class Options:
    """beni against transformers' own LLaVA: speed and memory of the same training."""

    out: str = "runs/compare"
    """Folder for compare.json."""
    llm: tuple[str, ...] = ("smollm2",)
    """The language model, as `--llm` takes it, and options of it."""
    windows: int = 5
    """Windows that each contender runs in turn, behind one that does not count."""
    window: int = 2
    """Steps of a window. A longer race meets larger padded batches: for windows of 4, 24 GiB were too few."""
    agree: int = 20
    """Steps over which losses are compared, in fp32 and in bf16."""
    sizes: Sizes = field(default_factory=Sizes)


class Race(NamedTuple):
    """Windows of beni and of another, taken in turn."""

    ours: Sequence[Stretch]
    theirs: Sequence[Stretch]

    @property
    def speed(self) -> float:
        """beni's samples per second by the other's."""
        return _speed(self.ours) / _speed(self.theirs)

    @property
    def memory(self) -> float:
        """beni's peak by the other's."""
        return _memory(self.ours) / _memory(self.theirs)


class Contender:
    """A process that trains when it is its turn; it ends with the block."""

    def __init__(self, name: str, run: Callable[..., None], contest: Contest, *arguments: int) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=run, args=(contest, theirs, *arguments))
        self.process.start()
        theirs.close()
        self._told()

    def __enter__(self) -> "Contender":
        return self

    def __exit__(self, failed: type[BaseException] | None, *_: Any) -> None:
        if failed is None:
            self.pipe.send("go")  # behind its last window
        else:
            self.process.terminate()
        self.process.join()

    def go(self) -> Stretch:
        """Let it train for a window."""
        self.pipe.send("go")
        return self._told()

    def _told(self) -> Any:
        try:
            return self.pipe.recv()
        except EOFError:
            self.process.join()
            raise SystemExit(
                f"error: {self.name} ended with code {self.process.exitcode} (-9: memory ran out)"
            ) from None


def main(options: Options) -> dict[str, Any]:
    """Compare, print, and write compare.json; returns what is in it."""
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        encoder = write_encoder(Path(work) / "encoder", options.sizes)
        data = write_samples(Path(work) / "data", options.sizes)
        llm = ("--llm", *options.llm)
        contest = Contest(str(encoder), str(data), f"{work}/run", llm, "auto", 0, options.window)
        agreement = {dtype: agree(replace(contest, dtype=dtype), options.agree) for dtype in DTYPES}
        by_dtype = {dtype: alone(replace(contest, dtype=dtype), 2, MICRO_BATCHES[-1]) for dtype in DTYPES}
        theirs = replace(contest, dtype=max(by_dtype, key=lambda dtype: by_dtype[dtype]))
        grid = {size: alone(theirs, 2, size) for size in MICRO_BATCHES}
        best = max(grid, key=lambda size: grid[size])
        for what, speeds in (("dtype", by_dtype), (f"micro-batch in {theirs.dtype}", grid)):
            print(f"Trainer, samples/s by {what}:", ", ".join(f"{key}: {speed:.3g}" for key, speed in speeds.items()))
        others = {"plain": (plain,), "trainer": (trainer, best)}
        races = {name: race(contest, theirs, options.windows, name, *other) for name, other in others.items()}
    result = summary(races) | {"agreement": agreement, "trainer_grid": grid, "trainer_micro_batch": best}
    result |= {"trainer_by_dtype": by_dtype, "others_dtype": theirs.dtype}
    result["machine"] = {"threads": torch.get_num_threads(), "torch": torch.__version__}
    (out / "compare.json").write_text(json.dumps(result, indent=2) + "\n")
    print(told(result))
    return result


def agree(contest: Contest, steps: int) -> float:
    """Largest relative difference of the losses of beni and of the plain loop."""
    contest = replace(contest, steps=steps, window=steps)
    losses = []
    for name, run in (("beni", beni), ("plain", plain)):
        with Contender(name, run, contest) as contender:
            losses.append(contender.go().losses)
    worst = max(abs(ours / theirs - 1) for ours, theirs in zip(*losses, strict=True))
    print(f"losses of {steps} steps in {contest.dtype} differ by at most {worst:.1e}", file=sys.stderr)
    return worst


def alone(contest: Contest, windows: int, micro_batch: int) -> float:
    """Samples per second of Trainer with a micro-batch, without its first window."""
    contest = replace(contest, steps=windows * contest.window)
    with Contender(f"trainer {micro_batch}", trainer, contest, micro_batch) as contender:
        speeds = [contender.go().samples_per_s for _ in range(windows)]
    return median(speeds[1:])


def race(contest: Contest, others: Contest, windows: int, name: str, run: Callable[..., None], *arguments: int) -> Race:
    """beni and another in turn, without the first window of each."""
    steps = (windows + 1) * contest.window
    contest, others = replace(contest, steps=steps), replace(others, steps=steps)
    with Contender("beni", beni, contest) as ours, Contender(name, run, others, *arguments) as theirs:
        turns = [(ours.go(), theirs.go()) for _ in range(windows + 1)]
    return Race(*zip(*turns[1:], strict=True))


def summary(races: Mapping[str, Race]) -> dict[str, Any]:
    """Each race, and beni by the other that comes off best in it."""
    return {
        "samples_per_s_ratio": min(each.speed for each in races.values()),
        "peak_memory_ratio": max(each.memory for each in races.values()),
        "races": {
            name: {
                "samples_per_s_ratio": each.speed,
                "peak_memory_ratio": each.memory,
                "beni": _figures(each.ours),
                name: _figures(each.theirs),
            }
            for name, each in races.items()
        },
    }


def _figures(stretches: Sequence[Stretch]) -> dict[str, Any]:
    return {
        "samples_per_s": _speed(stretches),
        "windows": [stretch.samples_per_s for stretch in stretches],
        "peak_memory_bytes": _memory(stretches),
    }


def _speed(stretches: Sequence[Stretch]) -> float:
    return median(stretch.samples_per_s for stretch in stretches)


def _memory(stretches: Sequence[Stretch]) -> int:
    return max(stretch.peak_memory_bytes for stretch in stretches)


def told(result: Mapping[str, Any]) -> str:
    """A table for the terminal."""
    lines = [
        f"{who:<8} {each['samples_per_s']:>8.3g} samples/s {each['peak_memory_bytes'] / 2**30:>6.2f} GiB"
        for name, race in result["races"].items()
        for who, each in ((who, race[who]) for who in ("beni", name))
    ]
    speed, memory = result["samples_per_s_ratio"], result["peak_memory_ratio"]
    return "\n".join([*lines, f"beni / the best other: speed {speed:.2f}, memory {memory:.2f}"])


if __name__ == "__main__":
    main(tyro.cli(Options))
