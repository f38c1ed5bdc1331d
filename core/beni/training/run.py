"""A whole run: build, train, judge, save, report."""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from beni import report
from beni.config import RunConfig
from beni.data.loader import batches, worker_deaths_told
from beni.data.spec import judged as chosen_for_judging
from beni.errors import Stopped
from beni.eval.answers import answers, write_answers
from beni.eval.held_out import HeldOut
from beni.eval.judge import judge, subset
from beni.eval.prediction import Prediction, headline, summary
from beni.flops.peaks import Peak
from beni.processes import Processes, processes
from beni.sample import Sample
from beni.training import checkpoint, committed, freeze
from beni.training.callbacks import Callbacks
from beni.training.checkpoint import Facts, Position
from beni.training.loop import train_loop
from beni.training.metrics import peak_memory_bytes, read_lines
from beni.training.outputs import check_continued, resume_path, room, save_model, write_json
from beni.training.prepare import Run, prepare
from beni.training.ready import ready
from beni.training.stop import stop_noted
from beni.training.stopwatch import waited
from beni.training.totals import LISTED, Totals
from beni.training.tracking import Tracker, tracked


@dataclass(frozen=True, slots=True)
class Fitted:
    """How training ended."""

    totals: Totals
    """Of all processes since the run was started or continued."""
    peak: Peak | None
    """Of this process's device."""
    limit: float | None
    """Operations per second that all devices together can compute."""
    began: Position
    """Where this training started or went on."""
    position: Position
    selected: Position
    """Of which the model's weights are."""
    facts: Facts
    unsaved: list[int]
    """Steps whose checkpoint could not be written."""
    validated: dict[str, float]
    """Figures of the selected weights on the validation splits."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What the evaluation data says of a model."""

    items: Mapping[str, Sequence[Sample]]
    """By evaluation data."""
    seeing: Sequence[Prediction]
    """For all items, in order."""
    blind: Sequence[Prediction]
    """The same with blanked images."""
    figures: Mapping[str, Any]
    """For the result."""


def train(config: RunConfig) -> dict[str, Any]:
    """Train, judge and save what a configuration describes.

    Args:
        config: the run; under torchrun every process calls this with the same one.

    Returns:
        What `result.json` holds. For a dry run: what was planned.

    Raises:
        BeniError: a user's mistake, told in one line.
        Stopped: SIGTERM or Ctrl-C came; a checkpoint was written.
    """
    started = time.perf_counter()
    with processes(config.run) as procs:
        return _train(config, procs, started)


def _train(config: RunConfig, procs: Processes, started: float) -> dict[str, Any]:
    """As `train`; what it holds of the group of processes is gone when it returns."""
    resumed_from = resume_path(config)
    if resumed_from is not None:
        check_continued(resumed_from, config)
    run = prepare(config, procs, resumed_from, judging=True)
    if config.run.dry_run:
        return _dry_run(run) if procs.is_main else {}
    if procs.is_main:
        _print_table(run)
    with tracked(config.run.wandb if procs.is_main else "", run.folder, config.to_dict()) as tracker:
        result = _trained(run, resumed_from, tracker, started)
        tracker.summarize(result)
    return result


def _trained(run: Run, resumed_from: Path | None, tracker: Tracker, started: float) -> dict[str, Any]:
    """Train, save, judge, report; what `result.json` holds."""
    config, procs = run.config, run.processes
    fitted = _fit(run, resumed_from, tracker)
    procs.doing("saving the model")
    save_model(run.folder, run.built, run.adapters, procs)
    procs.doing("judging")
    judged = _judge(run)
    result = {
        **judged.figures,
        "steps": fitted.position.steps,
        "measured_steps": fitted.position.steps - fitted.began.steps,
        "skipped_steps": fitted.position.skipped,
        "selected_step": fitted.selected.steps,
        "computed": list(fitted.facts.computed),
        "failed_checkpoints": fitted.unsaved,
        **fitted.validated,
        **fitted.totals.summary(fitted.limit),
        "peak": fitted.peak and fitted.peak._asdict(),
        "unusable_samples": len(run.feed.unusable),
        "unusable": [{"id": name, "reason": why} for name, why in run.feed.unusable[:LISTED]],
        "parameters": _parameters(run.table),
        "peak_memory_bytes": max(procs.gather(peak_memory_bytes(procs.device))),
        "feature_cache": run.cached and run.cached.summary(),
        "processes": procs.world,
        "dtype": str(run.dtype).removeprefix("torch."),
        "wall_s": time.perf_counter() - started,
    }
    procs.doing("writing the report")
    if procs.is_main:
        samples = [sample for part in judged.items.values() for sample in part]
        shown = report.choose_shown(samples, judged.seeing, seed=config.run.seed)
        lines = read_lines(run.folder / "metrics.jsonl")
        with room(run.folder):
            write_answers(run.folder / "predictions.jsonl", answers(judged.items, judged.seeing, judged.blind))
            report.write_report(run.folder / "report.html", result, lines, shown, config.to_dict())
            report.write_card(run.folder / "model" / "README.md", result, _recorded(run))
            write_json(run.folder / "result.json", result)  # the last: a folder with a result is whole
        tqdm.write(f"wrote {run.folder / 'report.html'}, and the model to {run.folder / 'model'}", file=sys.stderr)
    return result


def _fit(run: Run, resumed_from: Path | None, tracker: Tracker) -> Fitted:
    """Shard, freeze, continue where a checkpoint stopped, and train to the end."""
    config, procs, model = run.config, run.processes, run.built.model
    start = ready(run)
    optimizer = start.optimizer
    frozen = freeze.frozen_checksum(model)
    facts, position = _facts(run, int(procs.sum(frozen)[0]) % freeze.CHECKSUMS), Position()
    if resumed_from is not None:
        position, facts = checkpoint.load(resumed_from, model, optimizer, facts, procs)
        if procs.is_main and facts.computed[-1]["from_step"] == position.steps and (change := facts.change()):
            print(f"going on behind step {position.steps} with {change}: the same samples, results equal to rounding")
    began = position
    callbacks = Callbacks(run, start, facts, position, tracker)
    if procs.is_main:
        write_json(run.folder / "config.json", _recorded(run))
    workers: list[BaseProcess] = []
    steps = batches(
        run.feed,
        position.place,
        run.total - position.steps,
        config.data.workers,
        procs.rank,
        procs.world,
        workers,
    )
    with stop_noted(procs.is_main) as asked_to_stop, closing(callbacks), closing(steps), worker_deaths_told(workers):
        position = train_loop(
            model,
            optimizer,
            waited(steps, callbacks.monitor.watch),
            position,
            run.total,
            config.optim,
            procs,
            after_step=callbacks.after_step,
            after_backward=lambda: freeze.assert_gradients(model, run.table),
            asked_to_stop=asked_to_stop,
        )
        [stopped] = procs.sum(asked_to_stop() or position.steps < run.total)
        if stopped:
            callbacks.save(position)
    if stopped:
        raise Stopped(
            f"stopped behind step {position.steps} of {run.total}; everything is saved: the same command "
            f"with --out {run.folder} --resume auto goes on"
        )
    if frozen != freeze.frozen_checksum(model):
        raise RuntimeError("a frozen parameter changed during training: this is a defect of beni")
    selected = position
    best = committed.named(callbacks.checkpoints, committed.BEST)
    if config.run.select == "best" and best is not None:
        selected, _ = checkpoint.load(best, model, optimizer, facts, procs)
    validated = procs.from_main(_validated(run.folder, selected.steps) if procs.is_main else {})
    return Fitted(
        callbacks.totals,
        callbacks.peak,
        callbacks.limit,
        began,
        position,
        selected,
        facts,
        callbacks.failed_checkpoints,
        validated,
    )


def _validated(folder: Path, step: int) -> dict[str, float]:
    """What was logged of the validation splits behind a step, by this process or before the run was continued."""
    lines = [line for line in read_lines(folder / "metrics.jsonl") if line["step"] == step]
    return {name: value for line in lines for name, value in line.items() if name.startswith("val_")}


def _judge(run: Run) -> Judged:
    """Answer the evaluation data with the images and without."""
    data, built, procs, features = run.config.data, run.built, run.processes, run.features
    chosen = chosen_for_judging(data.eval_data, data.data)
    items = {name: subset(samples, data.eval_limit) for name, samples in chosen.items()}
    everything = [sample for samples in items.values() for sample in samples]
    figures: dict[str, Any] = dict.fromkeys(("accuracy", "accuracy_blind", "eval_loss"))
    figures["eval_limit"] = data.eval_limit
    if not everything:
        return Judged({}, [], [], figures | {"evaluations": {}})
    seeing: list[Prediction] = []
    blind: list[Prediction] = []
    evaluations: dict[str, Any] = {}
    for name, samples in items.items():
        arguments = (built.model, built.composer, samples, procs, data.eval_batch, data.max_new_tokens)
        seen = judge(*arguments, label=f"judging {name}", features=features)
        unseen = judge(*arguments, blind=True, label=f"judging {name} blind", features=features)
        unseen = [
            replace(u, prediction="", score=0.0, error=s.error) if s.error else u
            for s, u in zip(seen, unseen, strict=True)
        ]
        evaluations[name] = summary(seen) | {"blind": summary(unseen)}
        seeing += seen
        blind += unseen
    figures |= headline(summary(seeing), summary(blind))
    held_out = HeldOut.of([everything], built.composer, run.config.batch, features)
    figures["eval_loss"] = held_out.loss(built.model, procs)
    return Judged(items, seeing, blind, figures | {"evaluations": evaluations})


def _print_table(run: Run) -> None:
    print(f"run in {run.folder}")
    print(freeze.show(run.table))
    if run.quantized:
        print(f"quantized: {run.quantized.summary()}")
    for adapters in run.adapters:
        print(f"adapters in {adapters.part}: {adapters.summary()}")


def _print_sources(run: Run) -> None:
    """What each source is trained with."""
    data, rows = run.config.data, run.rows
    for spec, source, lengths in zip(data.data, rows.sources, rows.plan.lengths, strict=True):
        if not len(source):
            continue  # a stream of weight 0
        first = source[0]
        template = first.template or data.template or "of the LLM"
        samples = f"{len(lengths.usable):,} samples{' of each block' if run.rows is not run.feed else ''}"
        print(f"data {spec}: {samples}, template {template}, loss weight {first.loss_weight:g}")


def _recorded(run: Run) -> dict[str, Any]:
    """What `config.json` holds: every option, and what happened to parts."""
    loaded = {part: asdict(origin) for part, origin in run.built.loaded.items()}
    adapted = {adapters.part: adapters.paths for adapters in run.adapters}
    quantized = {run.quantized.part: asdict(run.quantized)} if run.quantized else {}
    return run.config.to_dict() | {"loaded": loaded, "adapted": adapted, "quantized": quantized}


def _facts(run: Run, frozen: int) -> Facts:
    """What must be equal for a continuation to be the same run, and what its bits depend on besides."""
    required = {
        "configuration": run.config.training_hash(),
        "dtype": str(run.dtype),
        "trained parts": [row.part for row in run.table if row.trainable],
        "frozen weights": frozen,
    }
    computed = {
        "from_step": 0,
        "processes": run.processes.world,
        "replicas": run.config.run.replicas,
        "threads": torch.get_num_threads(),
        "blocks": "compiled" if run.config.run.compile else "eager",
        "features": "computed" if run.cached is None else "cached",
    }
    return Facts(required, (computed,))


def _parameters(table: Sequence[freeze.FreezeRow]) -> dict[str, Any]:
    return {
        "total": sum(row.parameters for row in table),
        "trainable": sum(row.trained for row in table),
        "per_part": {row.part: row.parameters for row in table},
        "trained_per_part": {row.part: row.trained for row in table},
    }


def _dry_run(run: Run) -> dict[str, Any]:
    """Print what would happen, and write `sample.html`."""
    config, rows, plan = run.config, run.rows, run.rows.plan
    batch = rows[(0, 0, 0)]
    stats, samples = batch.stats, sum(len(source.usable) for source in plan.lengths)
    _print_table(run)
    _print_sources(run)
    print(report.show_batch(batch, run.built.tokenizer, run.built.composer.image_token))
    print(
        f"plan: {run.total} steps, {plan.steps(0)} per {'epoch' if rows is run.feed else 'block'} of {samples:,} "
        f"samples, order {config.batch.order}; a "
        f"step is {config.batch.rows} x {config.batch.row_tokens} tokens at most; the first row has {stats.samples} "
        f"samples, {stats.tokens} tokens, {stats.targets} targets, {stats.images} images"
    )
    for name, why in stats.bad:
        print(f"left out: '{name}': {why}")
    report.write_sample(run.folder / "sample.html", run.rows, run.built.tokenizer)
    print(f"wrote {run.folder / 'sample.html'}; nothing was trained (--dry-run)")
    planned = {"steps": run.total, "steps_per_epoch": plan.steps(0), "parameters": _parameters(run.table)}
    return planned | {"out": os.fspath(run.folder)}
