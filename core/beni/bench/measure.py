"""Measures one combination of parts: the training of a run, for some steps, with a stopwatch beside it."""

import os
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from statistics import median, quantiles
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from beni.bench.passes import BACKWARD, CONNECT, ENCODE, FORWARD, LLM, OPTIMIZER, timed
from beni.bench.regime import Regime, divide
from beni.config import RunConfig
from beni.data.loader import batches, worker_deaths_told
from beni.errors import DataError
from beni.flops.account import FlopMeter
from beni.flops.estimates import (
    Decoder,
    chinchilla_forward,
    kaplan_forward_per_token,
    megatron_training,
    palm_training_per_token,
)
from beni.flops.figures import per_sample, total, utilization
from beni.flops.peaks import Peak, limit_of, peak_of
from beni.processes import Processes, processes
from beni.training import freeze
from beni.training.checkpoint import Position
from beni.training.loop import StepReport, train_loop
from beni.training.metrics import peak_memory_bytes
from beni.training.prepare import Run, prepare
from beni.training.ready import ready
from beni.training.stopwatch import WAIT, Stopwatch, waited
from beni.training.totals import Totals, why_none

REST = "rest"
"""Of a step: clipping, logging, and everything else that is not timed by itself."""


@dataclass(frozen=True, slots=True)
class Windows:
    """How many steps are measured."""

    warmup_steps: int = 10
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
        return self.warmup_steps + self.windows * self.window_steps

    @property
    def total(self) -> int:
        return self.timed + self.profiled


def measure(config: RunConfig, plan: Windows) -> dict[str, Any]:
    """Train as `beni train` does, for a few steps, and say what it cost.

    Args:
        config: a run's; its folder takes nothing.
        plan: how many steps.

    Returns:
        A row of `report.json`; plain values.

    Raises:
        BeniError: as in training; or the operations cannot be counted.
    """
    with processes(config.run) as procs:
        return _measure(config, procs, plan)


def _measure(config: RunConfig, procs: Processes, plan: Windows) -> dict[str, Any]:
    run = prepare(config, procs, None)
    start = ready(run)
    model, optimizer, meter = run.built.model, start.optimizer, start.counted()
    peak = peak_of(procs.device, run.dtype, config.run.peak_tflops or None)
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
        raise DataError(why_none(recorder.bad))
    return _row(run, recorder, peak)


class _Recorder:
    """What happens behind each step. The clock goes on within a window: data workers do, too."""

    def __init__(self, plan: Windows, meter: FlopMeter, device: torch.device) -> None:
        self.plan, self.meter, self.device = plan, meter, device
        self.watch = Stopwatch(device)
        self.windows: list[Totals] = []
        self.open = Totals()
        self.clock = 0.0
        self.regime: Regime | None = None
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its notes on itself, and on a GPU that is not there
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
        if plan.warmup_steps < done <= plan.timed:
            self.open.add(step.batches, self.meter)
        boundary = plan.warmup_steps <= done <= plan.timed and (done - plan.warmup_steps) % plan.window_steps == 0
        if not boundary and done != plan.total:
            return
        times = self.watch.read()
        seconds = time.perf_counter() - self.clock
        if boundary and done > plan.warmup_steps:
            self.open.seconds, self.open.times = seconds, times
            self.windows.append(self.open)
        if self.profiling:
            self.close()
            on_gpu = self.device.type == "cuda"
            self.regime = divide(self.profiler.key_averages(), seconds, times.get(WAIT, 0.0), on_gpu)
        elif done == plan.timed and plan.profiled:
            self.profiler.start()
            self.profiling = True
        self.open, self.clock = Totals(), time.perf_counter()

    def close(self) -> None:
        """Let the profiler go."""
        if self.profiling:
            self.profiler.stop()
            self.profiling = False


def _row(run: Run, recorder: _Recorder, peak: Peak | None) -> dict[str, Any]:
    """Figures of all processes together; times are the first one's."""
    procs, whole = run.processes, Totals()
    windows = [window.over(procs) for window in recorder.windows]
    for window in windows:
        whole.merge(window)
    limit = limit_of(procs.gather(peak))
    speeds = [window.samples / window.seconds for window in windows]
    rate = median(total(window.flops).model / window.seconds for window in windows)
    return {
        **_names(run.config),
        "device": _device_name(procs.device),
        "dtype": str(run.dtype).removeprefix("torch."),
        "processes": procs.world,
        "samples_per_s": median(speeds),
        "samples_per_s_quartiles": _quartiles(speeds),
        "images_per_s": median(window.images / window.seconds for window in windows),
        "positions_per_s": median(window.tokens / window.seconds for window in windows),
        "step_s": whole.seconds / (len(windows) * recorder.plan.window_steps),
        "step_split": _split(recorder.windows, recorder.regime),
        **per_sample(whole.flops, whole.causal, whole.samples),
        **utilization(rate, whole.flops, whole.causal, limit),
        "peak": peak and peak._asdict(),
        "regime": recorder.regime and recorder.regime.bound_by,
        "regime_why": recorder.regime and str(recorder.regime),
        "peak_memory_bytes": max(procs.gather(peak_memory_bytes(procs.device))),
        "skipped_samples": sum(procs.gather(len(recorder.bad))),
        "visual_tokens_per_image": whole.visual_tokens / whole.images if whole.images else None,
        "positions_per_sample": whole.tokens / whole.samples,
        "parameters": sum(row.parameters for row in run.table),
        "trainable_parameters": sum(row.trained for row in run.table),
        "estimates_per_sample": _estimates(run, whole.tokens / whole.samples),
    }


def _split(windows: Sequence[Totals], regime: Regime | None) -> dict[str, float]:
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
    return f"{part.plugin.typed}:{main}" if main else part.plugin.typed


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
