"""What happens after a step: count, log, validate, checkpoint."""

import time
from math import inf

import torch

from beni.errors import DataError
from beni.eval.judge import held_out_loss
from beni.training import checkpoint
from beni.training.checkpoint import Facts, Position
from beni.training.loop import StepReport
from beni.training.metrics import Metrics, Totals, trim
from beni.training.prepare import Run, held_out

EVALUATIONS = 10
"""Times per run that the validation loss is taken, unless `eval_every` says otherwise."""


class Callbacks:
    """What happens after a step: count, log, validate, checkpoint. The clock stands still while it does."""

    def __init__(self, run: Run, optimizer: torch.optim.Optimizer, facts: Facts, position: Position) -> None:
        self.run, self.optimizer, self.facts = run, optimizer, facts
        self.checkpoints = run.folder / "checkpoints"
        self.held_out = held_out(run)
        selects = run.config.run.select == "best"
        self.lowest = checkpoint.lowest_loss(self.checkpoints, position.steps) if selects else -inf
        self.saved = position
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
        if step.skipped:
            self.metrics.log(done, skipped=step.skipped)
        if done % options.log_every == 0 or last:
            self._log(step)
        else:
            self.metrics.advance(loss=self.loss)
        paused = time.perf_counter()
        best = None
        if self.held_out is not None and (done % self.eval_every == 0 or last):
            loss = held_out_loss(self.run.built.model, self.held_out, self.run.processes)
            self.metrics.log(done, val_loss=loss)
            if loss < self.lowest:
                best = self.lowest = loss
        due = options.checkpoint_every and done % options.checkpoint_every == 0
        if last or due or best is not None:
            self.save(step.position, best)
        self.clock += time.perf_counter() - paused

    def save(self, position: Position, best: float | None = None) -> None:
        """Write a checkpoint, unless it is there; `best` is the validation loss, if it is the lowest so far."""
        if position == self.saved and position.steps:
            return
        self.saved = position
        model, keep = self.run.built.model, self.run.config.run.keep
        checkpoint.save(
            self.checkpoints, model, self.optimizer, position, self.facts, self.run.processes, keep=keep, best=best
        )

    def _log(self, step: StepReport) -> None:
        self.window.seconds = time.perf_counter() - self.clock
        self.clock += self.window.seconds
        [loss] = self.run.processes.sum(step.loss.item())
        window = self.window.over(self.run.processes)
        self.totals.merge(self.window)
        self.window = Totals()
        self.loss = f"{loss:.3f}"
        speed = {name: window.summary()[name] for name in ("samples_per_s", "tokens_per_s")}
        learned = {} if step.skipped else {"loss": loss, "grad_norm": step.grad_norm.item()}
        lr = self.run.config.optim.lr * step.lr_factor
        self.metrics.log(step.position.steps, **learned, lr=lr, epoch=step.position.epoch, **speed)
        self.metrics.advance(loss=self.loss, tokens_s=f"{speed['tokens_per_s']:,.0f}")

    def _stop_at_bad(self, step: StepReport) -> None:
        bad = [pair for batch in step.batches for pair in batch.stats.bad]
        if self.run.config.data.on_bad_sample == "error" and bad:
            raise DataError(f"sample '{bad[0][0]}': {bad[0][1]} (--on-bad-sample skip leaves such samples out)")
