"""Measures one combination of parts: the training of a run, for some steps, with a stopwatch beside it."""

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from statistics import median, quantiles
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from beni.bench.ready import ready
from beni.bench.regime import Regime, divide
from beni.bench.stopwatch import BACKWARD, CONNECT, ENCODE, FORWARD, LLM, OPTIMIZER, WAIT, Stopwatch, timed, waited
from beni.config import RunConfig
from beni.data.batch import PackedBatch
from beni.data.loader import batches, worker_deaths_told
from beni.errors import DataError
from beni.flops.account import FlopMeter, RowFacts
from beni.flops.count import Flops, PartFlops, added
from beni.flops.estimates import (
    Decoder,
    chinchilla_forward,
    kaplan_forward_per_token,
    megatron_training,
    palm_training_per_token,
)
from beni.flops.peaks import Peak, peak_of
from beni.processes import Processes, processes
from beni.training import freeze
from beni.training.checkpoint import Position
from beni.training.loop import StepReport, train_loop
from beni.training.metrics import peak_memory_bytes
from beni.training.prepare import Run, prepare

REST = "rest"
"""Of a step: clipping, logging, and everything else that is not timed by itself."""


@dataclass(frozen=True, slots=True)
class Windows:
    """How many steps are measured."""

    warmup: int = 10
    """Steps before anything is measured."""
    windows: int = 5
    """Stretches of steps; figures are medians over them."""
    window_steps: int = 10
    """Steps of a window."""
    profiled: int = 3
    """Steps behind them, which are run under a profiler to say what bounds them."""

    @property
    def timed(self) -> int:
        """Steps that are measured or come before."""
        return self.warmup + self.windows * self.window_steps

    @property
    def total(self) -> int:
        return self.timed + self.profiled


@dataclass(slots=True)
class Window:
    """What one process did in some steps."""

    seconds: float = 0
    samples: int = 0
    images: int = 0
    positions: int = 0
    """Of the language model, without padding and blank images."""
    visual_tokens: int = 0
    facts: list[RowFacts] = field(default_factory=list)
    """Of its rows, until their operations are counted."""
    flops: PartFlops = field(default_factory=dict)
    causal: PartFlops = field(default_factory=dict)
    times: dict[str, float] = field(default_factory=dict)

    def add(self, rows: Sequence[PackedBatch], meter: FlopMeter) -> None:
        """Note the rows of a step."""
        for row in rows:
            self.facts.append(meter.facts(row))
            self.samples += row.stats.samples
            self.images += row.stats.images
            self.positions += row.stats.tokens
            self.visual_tokens += row.stats.visual_tokens

    def count(self, meter: FlopMeter) -> None:
        """Count the operations of the rows."""
        for facts in self.facts:
            cost = meter.cost(facts)
            self.flops, self.causal = added(self.flops, cost.full), added(self.causal, cost.causal)
        self.facts = []


def measure(config: RunConfig, plan: Windows, peak_tflops: float | None = None) -> dict[str, Any]:
    """Train as `beni train` does, for a few steps, and say what it cost.

    Args:
        config: a run's; its folder takes nothing.
        plan: how many steps.
        peak_tflops: of one device, where its own is not known.

    Returns:
        A row of `report.json`; plain values.

    Raises:
        BeniError: as in training; or the operations cannot be counted.
    """
    with processes(config.run) as procs:
        return _measure(config, procs, plan, peak_tflops)


def _measure(config: RunConfig, procs: Processes, plan: Windows, peak_tflops: float | None) -> dict[str, Any]:
    run = prepare(config, procs, None)
    start = ready(run)
    model, optimizer, meter = run.built.model, start.optimizer, start.meter
    peak = peak_of(procs.device, procs.dtype, peak_tflops)
    recorder = _Recorder(plan, meter, procs.device)
    data = config.data
    workers: list[BaseProcess] = []
    rows = batches(run.feed, Position().place, plan.total, data.workers, procs.rank, procs.world, workers)

    def after_backward() -> None:
        backward_ends()
        freeze.assert_gradients(model, run.table)

    with (
        closing(recorder),
        closing(rows),
        worker_deaths_told(workers),
        timed(model, optimizer, recorder.watch) as backward_ends,
    ):
        steps = waited(rows, recorder.watch)
        recorder.begin()
        train_loop(
            model,
            optimizer,
            steps,
            Position(),
            plan.total,
            config.optim,
            procs,
            after_step=recorder.after_step,
            after_backward=after_backward,
        )
    for window in recorder.windows:
        window.count(meter)
    if not procs.sum(sum(window.samples for window in recorder.windows))[0]:
        raise DataError(f"no sample could be trained on: {_first_bad(recorder.bad)}")
    return _row(run, recorder, peak)


class _Recorder:
    """What happens behind each step. The clock goes on within a window: data workers do, too."""

    def __init__(self, plan: Windows, meter: FlopMeter, device: torch.device) -> None:
        self.plan, self.meter, self.device = plan, meter, device
        self.watch = Stopwatch(device)
        self.windows: list[Window] = []
        self.open = Window()
        self.clock = 0.0
        self.regime: Regime | None = None
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
        self.profiler = profile(activities=activities)
        self.profiling = False
        self.bad: dict[str, str] = {}
        """Sample id → why it was left out."""

    def begin(self) -> None:
        """Before the first step."""
        self.clock = time.perf_counter()

    def after_step(self, step: StepReport) -> None:
        done, plan = step.position.steps, self.plan
        self.bad.update(pair for batch in step.batches for pair in batch.stats.bad)
        if plan.warmup < done <= plan.timed:
            self.open.add(step.batches, self.meter)
        boundary = plan.warmup <= done <= plan.timed and (done - plan.warmup) % plan.window_steps == 0
        if not boundary and done != plan.total:
            return
        times = self.watch.read()
        seconds = time.perf_counter() - self.clock
        if boundary and done > plan.warmup:
            self.open.seconds, self.open.times = seconds, times
            self.windows.append(self.open)
        if self.profiling:
            self.close()
            on_gpu = self.device.type == "cuda"
            self.regime = divide(self.profiler.key_averages(), seconds, times.get(WAIT, 0.0), on_gpu)
        elif done == plan.timed and plan.profiled:
            self.profiler.start()
            self.profiling = True
        self.open, self.clock = Window(), time.perf_counter()

    def close(self) -> None:
        """Let the profiler go."""
        if self.profiling:
            self.profiler.stop()
            self.profiling = False


def _row(run: Run, recorder: _Recorder, peak: Peak | None) -> dict[str, Any]:
    """Figures of all processes together; times are the first one's."""
    procs, windows = run.processes, recorder.windows
    everybody: list[tuple[Window, ...]] = list(zip(*procs.gather(windows), strict=True))  # by window
    peaks = procs.gather(peak)
    limit = sum(each.flops_per_s for each in peaks if each) if all(peaks) else None
    speeds = [sum(w.samples for w in each) / each[0].seconds for each in everybody]
    whole = [window for each in everybody for window in each]
    samples, images = sum(w.samples for w in whole), sum(w.images for w in whole)
    seconds = sum(each[0].seconds for each in everybody)
    positions = sum(w.positions for w in whole)
    flops, causal = added(*(w.flops for w in whole)), added(*(w.causal for w in whole))
    rate = median(sum(_total(w.flops).model for w in each) / each[0].seconds for each in everybody)
    total = _total(flops)
    return {
        **_names(run.config),
        "device": _device_name(procs.device),
        "dtype": str(procs.dtype).removeprefix("torch."),
        "processes": procs.world,
        "samples_per_s": median(speeds),
        "samples_per_s_quartiles": _quartiles(speeds),
        "images_per_s": median(sum(w.images for w in each) / each[0].seconds for each in everybody),
        "positions_per_s": median(sum(w.positions for w in each) / each[0].seconds for each in everybody),
        "step_s": seconds / (len(everybody) * recorder.plan.window_steps),
        "step_split": _split(windows, recorder.regime),
        "flops_per_sample": total.model / samples,
        "flops_per_sample_causal": _total(causal).model / samples,
        "flops_per_sample_by_part": {
            part: {"forward": each.forward / samples, "backward": each.backward / samples}
            for part, each in sorted(flops.items())
        },
        "flops_per_s": rate,
        "mfu": rate / limit if limit else None,
        "mfu_causal": rate * _total(causal).model / total.model / limit if limit else None,
        "hfu": rate * total.hardware / total.model / limit if limit else None,
        "peak": peak and {"flops_per_s": peak.flops_per_s, "precision": peak.precision, "source": peak.source},
        "regime": recorder.regime and recorder.regime.bound_by,
        "regime_why": recorder.regime and str(recorder.regime),
        "peak_memory_bytes": max(procs.gather(peak_memory_bytes(procs.device))),
        "skipped_samples": sum(procs.gather(len(recorder.bad))),
        "visual_tokens_per_image": sum(w.visual_tokens for w in whole) / images if images else None,
        "positions_per_sample": positions / samples,
        "parameters": sum(row.parameters for row in run.table),
        "trainable_parameters": sum(row.trained for row in run.table),
        "estimates_per_sample": _estimates(run, positions / samples),
    }


def _first_bad(bad: Mapping[str, str]) -> str:
    name, why = next(iter(bad.items()), ("", "the rows are empty"))
    return f"sample '{name}': {why}" if name else why


def _total(counts: Mapping[str, Flops]) -> Flops:
    return sum(counts.values(), Flops())


def _split(windows: Sequence[Window], regime: Regime | None) -> dict[str, float]:
    """Shares of a step's time: what the stopwatch timed, and the rest."""
    seconds = sum(window.seconds for window in windows)
    times = {name: sum(w.times.get(name, 0.0) for w in windows) / seconds for name in (WAIT, ENCODE, CONNECT, LLM)}
    whole = {name: sum(w.times.get(name, 0.0) for w in windows) / seconds for name in (FORWARD, BACKWARD, OPTIMIZER)}
    times["other forward"] = whole[FORWARD] - times[ENCODE] - times[CONNECT] - times[LLM]
    times |= {name: whole[name] for name in (BACKWARD, OPTIMIZER)}
    times[REST] = 1 - sum(times.values())
    if regime is not None:
        times["communication"] = regime.communication
    return times


def _names(config: RunConfig) -> dict[str, str]:
    """The parts, as one would ask for them."""
    encoders = [_reference(part) for part in config.encoders.values()]
    kinds = ("connector", "fusion", "llm", "view")
    return {"encoder": " + ".join(encoders)} | {kind: _reference(getattr(config, kind)) for kind in kinds}


def _reference(part: Any) -> str:
    main = getattr(part.config, part.config.argument) if part.config.argument else ""
    return f"{part.plugin.reference}:{main}" if main else part.plugin.reference


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def _quartiles(values: Sequence[float]) -> list[float]:
    if len(values) < 2:
        return [*values, *values][:2]
    low, _, high = quantiles(values, n=4, method="inclusive")
    return [low, high]


def _estimates(run: Run, length: float) -> dict[str, float] | None:
    """What others would estimate for the language model and its head, trained, for a sample of the mean length.

    None for a family that names its sizes in its own way.
    """
    llm = run.built.model.llm
    try:
        of = Decoder.of(llm.config)
    except AttributeError:
        return None
    rounded = round(length)
    parameters = sum(row.parameters for row in run.table if row.part == "llm")
    return {
        "kaplan": 3 * kaplan_forward_per_token(of, rounded) * length,
        "chinchilla": 3.0 * sum(chinchilla_forward(of, rounded).values()),
        "palm": palm_training_per_token(of, rounded, parameters) * length,
        "megatron": megatron_training(of, rounded, 1),
    }
