"""A whole run: build, train, judge, save, report."""

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from beni import report
from beni.config import RunConfig
from beni.data.loader import Rows, batches
from beni.data.plan import Lengths, Plan
from beni.data.spec import judged, training, validation
from beni.errors import CheckpointError, ConfigError, DataError
from beni.eval.judge import Prediction, held_out_loss, judge, subset, summary
from beni.model.build import Built, build
from beni.model.processing import BeniProcessor
from beni.processes import Processes, processes
from beni.sample import Sample
from beni.train import checkpoint, freeze
from beni.train.checkpoint import Position
from beni.train.loop import StepReport, train_loop
from beni.train.metrics import Metrics, Totals, peak_memory_bytes, read_lines, trim
from beni.train.parallel import parallelize

EVALUATIONS = 10
"""Times per run that the validation loss is taken, unless `eval_every` says otherwise."""


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
        if config.batch.rows % procs.world:
            raise ConfigError(
                f"--rows {config.batch.rows} cannot be shared by {procs.world} processes: choose a multiple of {procs.world}"
            )
        resumed_from = _resume_path(config)
        folder = Path(procs.from_main(str(_open_folder(config, resumed_from) if procs.is_main else "")))
        torch.manual_seed(config.run.seed)
        sources = training(config.data.data)
        built = build(config, _texts(sources))
        plan, lengths = _plan(config, built, sources)
        rows = Rows(sources, plan, built.composer, config.run.seed, config.data.augment)
        total = config.optim.steps or _steps_of(plan, config.optim.epochs)
        table = freeze.freeze_table(built.model, config.optim, {k: v.origin for k, v in built.loaded.items()})
        if config.run.dry_run:
            return _dry_run(config, built, rows, table, total, folder) if procs.is_main else {}
        if procs.is_main:
            print(freeze.show(table))
            _write(folder / "config.json", config.to_dict() | {"loaded": {k: asdict(v) for k, v in built.loaded.items()}})
        parallelize(built.model, procs)
        freeze.apply(built.model, table)
        groups = freeze.parameter_groups(built.model, table, config.optim.weight_decay)
        if not groups:
            raise ConfigError("nothing is trained: every part was loaded; name some with --train")
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), fused=True)  # type: ignore[arg-type]
        facts = _facts(config, procs)
        position = Position()
        if resumed_from is not None:
            position = checkpoint.load(resumed_from, built.model, optimizer, facts, procs)
        frozen = freeze.frozen_fingerprint(built.model)

        totals, position = _train(config, procs, built, rows, optimizer, table, position, total, folder, facts)
        if not torch.equal(frozen, freeze.frozen_fingerprint(built.model)):
            raise RuntimeError("a frozen parameter changed during training")
        save_model(folder / "model", built, procs)
        result = {
            "steps": position.steps,
            **totals.summary(),
            **_lengths_summary(lengths),
            "parameters": _parameters(table),
        }
        predictions = _judge(config, built, procs, result)
        memory = max(procs.gather(peak_memory_bytes(procs.device)))
        result |= {"peak_memory_bytes": memory, "wall_s": time.perf_counter() - started, "processes": procs.world}
        if procs.is_main:
            _write(folder / "result.json", result)
            shown = report.choose_shown(*predictions, seed=config.run.seed)
            lines = read_lines(folder / "metrics.jsonl")
            report.write_report(folder / "report.html", result, lines, shown, config.to_dict())
    return result


def _train(
    config: RunConfig,
    procs: Processes,
    built: Built,
    rows: Rows,
    optimizer: torch.optim.Optimizer,
    table: Sequence[freeze.FreezeRow],
    position: Position,
    total: int,
    folder: Path,
    facts: Mapping[str, Any],
) -> tuple[Totals, Position]:
    """Run the loop with its callbacks: log, validate, checkpoint."""
    held_out = _held_out(config, built)
    eval_every = config.run.eval_every or max(1, total // EVALUATIONS)
    totals, window = Totals(), Totals()
    if procs.is_main:
        trim(folder / "metrics.jsonl", position.steps)
    metrics = Metrics(folder, total, position.steps, procs.is_main)
    clock = time.perf_counter()
    shown_loss = "–"

    def after_step(step: StepReport) -> None:
        nonlocal clock, window, shown_loss
        done = step.position.steps
        last = done == total
        _forbid_bad(config, step)
        totals.add(step.batches)
        window.add(step.batches)
        if done % config.run.log_every == 0 or last:
            [loss] = procs.sum(step.loss.item())
            elapsed = time.perf_counter() - clock
            sums = window.over(procs)
            totals.seconds += elapsed
            shown_loss = f"{loss:.3f}"
            speed = {"samples_per_s": sums.samples / elapsed, "tokens_per_s": sums.tokens / elapsed}
            norm, lr = step.grad_norm.item(), config.optim.lr * step.lr_factor
            metrics.log(done, loss=loss, grad_norm=norm, lr=lr, epoch=step.position.epoch, **speed)
            metrics.advance(loss=shown_loss, tokens_s=f"{speed['tokens_per_s']:,.0f}")
            clock, window = time.perf_counter(), Totals()
        else:
            metrics.advance(loss=shown_loss)
        if held_out is not None and (done % eval_every == 0 or last):
            metrics.log(done, val_loss=held_out_loss(built.model, held_out, procs))
            clock = time.perf_counter() if window.samples == 0 else clock
        if last or (config.run.checkpoint_every and done % config.run.checkpoint_every == 0):
            checkpoint.save(folder / "checkpoints", built.model, optimizer, step.position, facts, procs)
            clock = time.perf_counter() if window.samples == 0 else clock

    steps = batches(
        rows,
        position.epoch,
        position.step_in_epoch,
        total - position.steps,
        config.data.workers,
        procs.rank,
        procs.world,
    )
    try:
        position = train_loop(
            built.model,
            optimizer,
            steps,
            position,
            total,
            config.optim,
            procs,
            after_step,
            after_backward=lambda: freeze.assert_gradients(built.model, table),
        )
    finally:
        metrics.close()
    return totals.over(procs), position


def save_model(folder: Path, built: Built, procs: Processes) -> None:
    """Write the whole model with its tokenizer, whatever the sharding; loads with `AutoModelForImageTextToText`."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_model_state_dict(built.model, options=options)
    for alias in built.model.all_tied_weights_keys:
        state.pop(alias, None)  # tied tensors are one on disk
    if procs.is_main:
        built.model.save_pretrained(folder, state_dict=state)
        BeniProcessor(built.tokenizer, built.composer).save_pretrained(folder)
    procs.barrier()


def _judge(config: RunConfig, built: Built, procs: Processes, result: dict[str, Any]) -> tuple[list[Sample], list[Prediction]]:
    """Answer the evaluation data with and without images; puts figures into the result and returns the answers."""
    data = config.data
    items = {
        name: subset(samples, data.eval_limit, config.run.seed)
        for name, samples in judged(data.eval_data, data.data).items()
    }
    everything = [sample for samples in items.values() for sample in samples]
    result |= {"accuracy": None, "accuracy_blind": None, "eval_loss": None, "eval_limit": data.eval_limit, "evaluations": {}}
    if not everything:
        return [], []
    arguments = (data.eval_batch, data.max_new_tokens)
    seeing = judge(built.model, built.composer, everything, procs, *arguments, label="judging")
    blind = judge(built.model, built.composer, everything, procs, *arguments, blind=True, label="judging blind")
    plan = Plan([Lengths(everything, built.composer)], (), config.batch, seed=0, shuffle=False)
    result |= {
        "accuracy": summary(seeing)["accuracy"],
        "accuracy_blind": summary(blind)["accuracy"],
        "eval_loss": held_out_loss(built.model, Rows([everything], plan, built.composer), procs),
    }
    start = 0
    for name, samples in items.items():
        part = slice(start, start + len(samples))
        start += len(samples)
        result["evaluations"][name] = summary(seeing[part]) | {"blind": summary(blind[part])}
    return everything, seeing


def _plan(config: RunConfig, built: Built, sources: Sequence[Sequence[Sample]]) -> tuple[Plan, list[Lengths]]:
    weights = config.data.weights
    if weights and (len(weights) != len(sources) or min(weights) < 0 or not sum(weights)):
        raise ConfigError(f"--weights needs one number ≥ 0 per source: there are {len(sources)} sources, {len(weights)} weights")
    lengths = [Lengths(samples, built.composer) for samples in sources]
    if config.data.on_bad_sample == "error":
        for source in lengths:
            if source.bad:
                raise DataError(source.bad[0][1])
    return Plan(lengths, weights, config.batch, config.run.seed), lengths


def _held_out(config: RunConfig, built: Built) -> Rows | None:
    """Rows of the validation splits, or None if no source has one."""
    sources = validation(config.data.data)
    if not sources:
        return None
    plan = Plan([Lengths(samples, built.composer) for samples in sources], (), config.batch, seed=0, shuffle=False)
    return Rows(sources, plan, built.composer)


def _steps_of(plan: Plan, epochs: float) -> int:
    whole, part = int(epochs), epochs - int(epochs)
    return max(1, sum(plan.steps(e) for e in range(whole)) + round(part * plan.steps(whole)))


def _texts(sources: Sequence[Sequence[Sample]]) -> Iterator[str]:
    for samples in sources:
        for index in range(len(samples)):
            for turn in samples[index].turns:
                yield from (part for part in turn.content if isinstance(part, str))


def _forbid_bad(config: RunConfig, step: StepReport) -> None:
    if config.data.on_bad_sample == "error":
        for batch in step.batches:
            for name, reason in batch.stats.bad:
                raise DataError(f"sample '{name}': {reason} (--on-bad-sample skip leaves such samples out)")


def _facts(config: RunConfig, procs: Processes) -> dict[str, Any]:
    """What must be equal for a continuation to give the same bits."""
    return {
        "configuration": config.training_hash(),
        "processes": procs.world,
        "threads": torch.get_num_threads(),
        "dtype": str(procs.dtype),
    }


def _resume_path(config: RunConfig) -> Path | None:
    wanted = config.run.resume
    if wanted == "never":
        return None
    if wanted == "auto":
        return checkpoint.latest(Path(config.run.out) / "checkpoints") if config.run.out else None
    path = Path(wanted)
    if not path.is_dir():
        raise CheckpointError(f"--resume {wanted}: there is no checkpoint folder of that name")
    return checkpoint.latest(path / "checkpoints") or path


def _open_folder(config: RunConfig, resumed_from: Path | None) -> Path:
    """The run's folder, new or empty unless the run in it is continued.

    Raises:
        ConfigError: it holds another run.
    """
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{config.connector.plugin.name}-{config.fusion.plugin.name}"
    folder = Path(config.run.out or Path("runs") / name.replace("/", "_"))
    if folder.is_file():
        raise ConfigError(f"--out {folder} is a file")
    if resumed_from is None and config.run.resume != "auto" and (folder / "config.json").exists() and not config.run.dry_run:
        raise ConfigError(f"--out {folder} holds another run: choose another folder, or continue that run with --resume auto")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _parameters(table: Sequence[freeze.FreezeRow]) -> dict[str, Any]:
    return {
        "total": sum(row.parameters for row in table),
        "trainable": sum(row.parameters for row in table if row.trainable),
        "per_part": {row.part: row.parameters for row in table},
    }


def _lengths_summary(lengths: Sequence[Lengths]) -> dict[str, Any]:
    unusable = [{"id": name, "reason": why} for source in lengths for name, why in source.bad]
    return {"unusable_samples": len(unusable), "unusable": unusable[:1000]}


def _dry_run(
    config: RunConfig, built: Built, rows: Rows, table: Sequence[freeze.FreezeRow], total: int, folder: Path
) -> dict[str, Any]:
    """Print what would happen, and write `sample.html`."""
    batch = rows[(0, 0, 0)]
    per_epoch = rows.plan.steps(0)
    print(freeze.show(table))
    print(report.show_batch(batch, built.tokenizer, built.composer.image_token))
    stats = batch.stats
    print(
        f"plan: {total} steps, {per_epoch} per epoch of {sum(len(s.usable) for s in rows.plan.lengths):,} samples; a step is "
        f"{config.batch.rows} rows of up to {config.batch.row_tokens} tokens, the first row has {stats.samples} samples, "
        f"{stats.tokens} tokens, {stats.targets} targets, {stats.images} images"
    )
    report.write_sample(folder / "sample.html", rows, built.tokenizer)
    print(f"wrote {folder / 'sample.html'}; nothing was trained (--dry-run)")
    return {"steps": total, "steps_per_epoch": per_epoch, "parameters": _parameters(table), "out": os.fspath(folder)}


def _write(path: Path, value: Any) -> None:
    draft = path.with_name(f".{path.name}")
    draft.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    draft.replace(path)
