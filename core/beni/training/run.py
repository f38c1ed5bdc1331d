"""A whole run: build, train, judge, save, report."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from beni import report
from beni.config import RunConfig
from beni.data.loader import Rows, batches
from beni.data.plan import Lengths, Plan
from beni.data.spec import judged, training, validation
from beni.errors import ConfigError, DataError
from beni.eval.judge import Prediction, held_out_loss, judge, subset, summary
from beni.model.build import Built, build
from beni.processes import Processes, processes
from beni.sample import Sample
from beni.training import checkpoint, freeze
from beni.training.checkpoint import Position
from beni.training.loop import StepReport, train_loop
from beni.training.metrics import Metrics, Totals, peak_memory_bytes, read_lines, trim
from beni.training.outputs import open_folder, resume_path, save_model, write_json
from beni.training.parallel import parallelize

EVALUATIONS = 10
"""Times per run that the validation loss is taken, unless `eval_every` says otherwise."""


@dataclass(frozen=True, slots=True)
class Run:
    """Everything that training needs, built and loaded, nothing trained yet."""

    config: RunConfig
    processes: Processes
    folder: Path
    built: Built
    rows: Rows
    table: list[freeze.FreezeRow]
    total: int
    """Optimizer steps of the whole run."""


def train(config: RunConfig) -> dict[str, Any]:
    """Train, judge and save what a configuration describes.

    Args:
        config: the run; under torchrun every process calls this with the same one.

    Returns:
        What `result.json` holds. For a dry run: what was planned.

    Raises:
        BeniError: a user's mistake, told in one line.
    """
    started = time.perf_counter()
    with processes(config.run) as procs:
        return _train(config, procs, started)


def _train(config: RunConfig, procs: Processes, started: float) -> dict[str, Any]:
    """As `train`; what it holds of the group of processes is gone when it returns."""
    resumed_from = resume_path(config)
    run = _prepare(config, procs, resumed_from)
    if config.run.dry_run:
        return _dry_run(run) if procs.is_main else {}
    if procs.is_main:
        print(freeze.show(run.table))
        origins = {part: asdict(origin) for part, origin in run.built.loaded.items()}
        write_json(run.folder / "config.json", config.to_dict() | {"loaded": origins})
    totals, position = _fit(run, resumed_from)
    save_model(run.folder / "model", run.built, procs)
    samples, predictions, judgement = _judge(run)
    result = {
        **judgement,
        "steps": position.steps,
        **totals.summary(),
        **_unusable(run.rows.plan.lengths),
        "parameters": _parameters(run.table),
        "peak_memory_bytes": max(procs.gather(peak_memory_bytes(procs.device))),
        "processes": procs.world,
        "wall_s": time.perf_counter() - started,
    }
    if procs.is_main:
        write_json(run.folder / "result.json", result)
        shown = report.choose_shown(samples, predictions, seed=config.run.seed)
        lines = read_lines(run.folder / "metrics.jsonl")
        report.write_report(run.folder / "report.html", result, lines, shown, config.to_dict())
    return result


def _prepare(config: RunConfig, procs: Processes, resumed_from: Path | None) -> Run:
    """Load the data, build the model, plan the batches, decide what is trained."""
    rows, world = config.batch.rows, procs.world
    if rows % world:
        raise ConfigError(f"--rows {rows} cannot be shared by {world} processes: choose a multiple of {world}")
    sources = training(config.data.data)
    built = build(config, _texts(sources))
    plan = _plan(config, built, sources)
    table = freeze.freeze_table(built.model, config.optim, {k: v.origin for k, v in built.loaded.items()})
    if not any(row.trainable for row in table):
        raise ConfigError("nothing is trained: every part was loaded; name some with --train")
    folder = Path(procs.from_main(str(open_folder(config, resumed_from)) if procs.is_main else ""))
    data = Rows(sources, plan, built.composer, config.run.seed, config.data.augment)
    return Run(config, procs, folder, built, data, table, config.optim.steps or _steps(plan, config.optim.epochs))


def _fit(run: Run, resumed_from: Path | None) -> tuple[Totals, Position]:
    """Shard, freeze, continue where a checkpoint stopped, and train to the end."""
    config, procs, model = run.config, run.processes, run.built.model
    parallelize(model, procs)
    freeze.apply(model, run.table)
    groups = freeze.parameter_groups(model, run.table, config.optim)
    optimizer = torch.optim.AdamW(groups, betas=config.optim.betas, fused=True)
    facts = _facts(run)
    position = Position()
    if resumed_from is not None:
        position = checkpoint.load(resumed_from, model, optimizer, facts, procs)
    frozen = freeze.frozen_checksum(model)
    callbacks = Callbacks(run, optimizer, facts, position)
    steps = batches(
        run.rows,
        position.epoch,
        position.step_in_epoch,
        run.total - position.steps,
        config.data.workers,
        procs.rank,
        procs.world,
    )
    try:
        position = train_loop(
            model,
            optimizer,
            steps,
            position,
            run.total,
            config.optim,
            procs,
            after_step=callbacks.after_step,
            after_backward=lambda: freeze.assert_gradients(model, run.table),
        )
    finally:
        callbacks.metrics.close()
    if not torch.equal(frozen, freeze.frozen_checksum(model)):
        raise RuntimeError("a frozen parameter changed during training: this is a defect of beni")
    return callbacks.totals.over(procs), position


class Callbacks:
    """What happens after a step: count, log, validate, checkpoint. The clock stands still while it does."""

    def __init__(
        self, run: Run, optimizer: torch.optim.Optimizer, facts: Mapping[str, Any], position: Position
    ) -> None:
        self.run, self.optimizer, self.facts = run, optimizer, facts
        self.held_out = _held_out(run)
        self.eval_every = run.config.run.eval_every or max(1, run.total // EVALUATIONS)
        self.totals, self.window = Totals(), Totals()
        if run.processes.is_main:
            trim(run.folder / "metrics.jsonl", position.steps)
        self.metrics = Metrics(run.folder, run.total, position.steps, run.processes.is_main)
        self.clock = time.perf_counter()
        self.loss = "–"

    def after_step(self, step: StepReport) -> None:
        options, done = self.run.config.run, step.position.steps
        last = done == self.run.total
        self._stop_at_bad(step)
        self.window.add(step.batches)
        if done % options.log_every == 0 or last:
            self._log(step)
        else:
            self.metrics.advance(loss=self.loss)
        paused = time.perf_counter()
        if self.held_out is not None and (done % self.eval_every == 0 or last):
            loss = held_out_loss(self.run.built.model, self.held_out, self.run.processes)
            self.metrics.log(done, val_loss=loss)
        if last or (options.checkpoint_every and done % options.checkpoint_every == 0):
            folder = self.run.folder / "checkpoints"
            model = self.run.built.model
            checkpoint.save(folder, model, self.optimizer, step.position, self.facts, self.run.processes)
        self.clock += time.perf_counter() - paused

    def _log(self, step: StepReport) -> None:
        self.window.seconds = time.perf_counter() - self.clock
        self.clock += self.window.seconds
        [loss] = self.run.processes.sum(step.loss.item())
        window = self.window.over(self.run.processes)
        self.totals.merge(self.window)
        self.window = Totals()
        self.loss = f"{loss:.3f}"
        speed = {name: window.summary()[name] for name in ("samples_per_s", "tokens_per_s")}
        lr = self.run.config.optim.lr * step.lr_factor
        self.metrics.log(
            step.position.steps,
            loss=loss,
            grad_norm=step.grad_norm.item(),
            lr=lr,
            epoch=step.position.epoch,
            **speed,
        )
        self.metrics.advance(loss=self.loss, tokens_s=f"{speed['tokens_per_s']:,.0f}")

    def _stop_at_bad(self, step: StepReport) -> None:
        bad = [pair for batch in step.batches for pair in batch.stats.bad]
        if self.run.config.data.on_bad_sample == "error" and bad:
            raise DataError(f"sample '{bad[0][0]}': {bad[0][1]} (--on-bad-sample skip leaves such samples out)")


def _judge(run: Run) -> tuple[list[Sample], list[Prediction], dict[str, Any]]:
    """Answer the evaluation data with the images and without: items, answers, and figures for the result."""
    data, built, procs = run.config.data, run.built, run.processes
    chosen = judged(data.eval_data, data.data)
    items = {name: subset(samples, data.eval_limit, run.config.run.seed) for name, samples in chosen.items()}
    everything = [sample for samples in items.values() for sample in samples]
    figures: dict[str, Any] = dict.fromkeys(("accuracy", "accuracy_blind", "eval_loss"))
    figures["eval_limit"] = data.eval_limit
    if not everything:
        return [], [], figures | {"evaluations": {}}
    arguments = (everything, procs, data.eval_batch, data.max_new_tokens)
    seeing = judge(built.model, built.composer, *arguments, label="judging")
    blind = judge(built.model, built.composer, *arguments, blind=True, label="judging blind")
    plan = Plan([Lengths(everything, built.composer)], (), run.config.batch, seed=0, shuffle=False)
    figures |= {
        "accuracy": summary(seeing)["accuracy"],
        "accuracy_blind": summary(blind)["accuracy"],
        "eval_loss": held_out_loss(built.model, Rows([everything], plan, built.composer), procs),
        "evaluations": {},
    }
    start = 0
    for name, samples in items.items():
        part = slice(start, start := start + len(samples))
        figures["evaluations"][name] = summary(seeing[part]) | {"blind": summary(blind[part])}
    return everything, seeing, figures


def _plan(config: RunConfig, built: Built, sources: Sequence[Sequence[Sample]]) -> Plan:
    weights = config.data.weights
    if weights and (len(weights) != len(sources) or min(weights) < 0 or not sum(weights)):
        raise ConfigError(
            f"--weights needs one number ≥ 0 per source: there are {len(sources)} sources, {len(weights)} weights"
        )
    lengths = [Lengths(samples, built.composer) for samples in sources]
    bad = [pair for source in lengths for pair in source.bad]
    if config.data.on_bad_sample == "error" and bad:
        raise DataError(bad[0][1])
    return Plan(lengths, weights, config.batch, config.run.seed)


def _held_out(run: Run) -> Rows | None:
    """Rows of the validation splits, or None if no source has one."""
    sources = validation(run.config.data.data)
    if not sources:
        return None
    lengths = [Lengths(samples, run.built.composer) for samples in sources]
    return Rows(sources, Plan(lengths, (), run.config.batch, seed=0, shuffle=False), run.built.composer)


def _steps(plan: Plan, epochs: float) -> int:
    """Optimizer steps of so many passes over the data."""
    whole, part = int(epochs), epochs - int(epochs)
    return max(1, sum(plan.steps(e) for e in range(whole)) + (round(part * plan.steps(whole)) if part else 0))


def _texts(sources: Sequence[Sequence[Sample]]) -> Iterator[str]:
    for samples in sources:
        for index in range(len(samples)):
            for turn in samples[index].turns:
                yield from (part for part in turn.content if isinstance(part, str))


def _facts(run: Run) -> dict[str, Any]:
    """What must be equal for a continuation to give the same bits."""
    return {
        "configuration": run.config.training_hash(),
        "processes": run.processes.world,
        "threads": torch.get_num_threads(),
        "dtype": str(run.processes.dtype),
    }


def _parameters(table: Sequence[freeze.FreezeRow]) -> dict[str, Any]:
    return {
        "total": sum(row.parameters for row in table),
        "trainable": sum(row.parameters for row in table if row.trainable),
        "per_part": {row.part: row.parameters for row in table},
    }


def _unusable(lengths: Sequence[Lengths]) -> dict[str, Any]:
    listed = [{"id": name, "reason": why} for source in lengths for name, why in source.bad]
    return {"unusable_samples": len(listed), "unusable": listed[:1000]}


def _dry_run(run: Run) -> dict[str, Any]:
    """Print what would happen, and write `sample.html`."""
    config, plan = run.config, run.rows.plan
    batch = run.rows[(0, 0, 0)]
    stats, samples = batch.stats, sum(len(source.usable) for source in plan.lengths)
    print(freeze.show(run.table))
    print(report.show_batch(batch, run.built.tokenizer, run.built.composer.image_token))
    print(
        f"plan: {run.total} steps, {plan.steps(0)} per epoch of {samples:,} samples; a step is {config.batch.rows} x "
        f"{config.batch.row_tokens} tokens at most; the first row has {stats.samples} samples, {stats.tokens} tokens, "
        f"{stats.targets} targets, {stats.images} images"
    )
    report.write_sample(run.folder / "sample.html", run.rows, run.built.tokenizer)
    print(f"wrote {run.folder / 'sample.html'}; nothing was trained (--dry-run)")
    planned = {"steps": run.total, "steps_per_epoch": plan.steps(0), "parameters": _parameters(run.table)}
    return planned | {"out": os.fspath(run.folder)}
