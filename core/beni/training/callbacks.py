"""What happens after a step: count, log, validate, checkpoint."""

from collections.abc import Callable
from math import inf
from pathlib import Path

from beni.errors import DataError, NotWritten, Uncountable
from beni.flops.peaks import limit_of, peak_of
from beni.training import committed
from beni.training.checkpoint import Facts, Position
from beni.training.loop import StepReport
from beni.training.metrics import Metrics, read_lines, trim
from beni.training.monitor import Monitor, together
from beni.training.prepare import Run, held_out
from beni.training.ready import Ready
from beni.training.saving import Saver
from beni.training.totals import Totals, why_none
from beni.training.tracking import Tracker

EVALUATIONS = 10
"""Times per run that the validation loss is taken, unless `eval_every` says otherwise."""
ENOUGH_BAD = 100
"""So many samples left out, and none that could be used, end a run: something is wrong with all of them."""


class Callbacks:
    """What happens after a step: count, log, validate, checkpoint. The clock of the run stands still meanwhile."""

    def __init__(self, run: Run, start: Ready, facts: Facts, position: Position, tracker: Tracker) -> None:
        self.run, self.facts, self.meter = run, facts, start.meter
        self.checkpoints = run.folder / "checkpoints"
        options = run.config.run
        self.saver = Saver(
            self.checkpoints, run.built.model, start.optimizer, run.processes, options.keep, options.async_checkpoints
        )
        self.held_out = held_out(run)
        self.lowest = self._lowest(position)
        self.saved = position
        self.failed_checkpoints: list[int] = []
        """Steps whose checkpoint could not be written."""
        self.eval_every = options.eval_every or max(1, run.total // EVALUATIONS)
        self.totals, self.window = Totals(), Totals()
        if run.processes.is_main:
            trim(run.folder / "metrics.jsonl", position.steps)
        self.barren = run.processes.from_main(run.processes.is_main and _barren(run.folder / "metrics.jsonl"))
        """Whether no line that was logged, now or before the run was continued, is about a sample."""
        peak = peak_of(run.processes.device, run.dtype, options.peak_tflops or None)
        self.peak, self.limit = peak, limit_of(run.processes.gather(peak))
        self.metrics = Metrics(run.folder, run.total, position.steps, run.processes.is_main, tracker)
        if start.uncountable:
            self._uncounted(start.uncountable)
        self.monitor = Monitor(run.processes.device)
        self.loss = "–"

    def after_step(self, step: StepReport) -> None:
        options, done = self.run.config.run, step.position.steps
        last = done == self.run.total
        self._stop_at_bad(step)
        self.window.add(step.batches, self.meter)
        logged = done % options.log_every == 0 or last
        validated = self.held_out is not None and (done % self.eval_every == 0 or last)
        due = last or bool(options.checkpoint_every and done % options.checkpoint_every == 0)
        if logged:
            self.monitor.close_window(self.window)
        else:
            self.metrics.advance(loss=self.loss)
        if not (logged or step.skipped or validated or due):
            return
        with self.monitor.paused():
            if step.skipped:
                self.metrics.log(done, skipped=step.skipped)
            if logged:
                self._log(step)
            self._keep(step, validated, due, last)

    def _keep(self, step: StepReport, validated: bool, due: bool, last: bool) -> None:
        """Validate and write a checkpoint, where that is due."""
        best = None
        if validated or due:
            self._survive(self.saver.settle, last)
        if self.held_out is not None and validated:
            figures = self.held_out.figures(self.run.built.model, self.run.processes)
            self.metrics.log(step.position.steps, **figures)
            best = figures["val_loss"] if figures["val_loss"] < self.lowest else None
        if due or best is not None:
            self._survive(lambda: self.begin(step.position, best), last)
        if last:
            self._survive(self.saver.settle, last)

    def begin(self, position: Position, best: float | None = None) -> None:
        """Write a checkpoint, unless it is there; `best` is the validation loss, if it is the lowest so far.

        Raises:
            NotWritten: it cannot be; of one that is written in the background, its `settle` tells.
        """
        if position == self.saved and position.steps:
            return
        self.saved = position
        if best is not None:
            self.lowest = best
        self.saver.begin(position, self.facts, best)
        if not self.run.config.run.async_checkpoints:
            self.saver.settle()

    def save(self, position: Position) -> None:
        """Write a checkpoint and wait for it.

        Raises:
            NotWritten: it cannot be.
        """
        self._survive(self.saver.settle, last=True)  # of the one before; this one matters
        self.begin(position)
        self.saver.settle()

    def close(self) -> None:
        """The run ends, whatever the reason."""
        self.saver.close()
        self.metrics.close()

    def _lowest(self, position: Position) -> float:
        """The validation loss of the best checkpoint that is there, of those up to a position."""
        if self.run.config.run.select != "best":
            return -inf
        return committed.lowest_loss(self.checkpoints, position.steps)

    def _survive(self, work: Callable[[], None], last: bool = False) -> None:
        """Do something about a checkpoint; whether the run survives one that cannot be written is for the options."""
        try:
            work()
        except NotWritten as error:
            failed = self.saver.position
            self.lowest, self.saved = self._lowest(failed), Position()
            if self.run.config.run.on_checkpoint_error == "stop" and not last:
                raise NotWritten(f"{error}; make room, and --resume auto goes on from there") from error
            self.failed_checkpoints.append(failed.steps)
            self.metrics.log(failed.steps, checkpoint_failed=str(error))
            self.metrics.tell(f"warning: {error}; the run goes on")

    def _log(self, step: StepReport) -> None:
        procs = self.run.processes
        [loss] = procs.sum(step.loss.item())
        if why := next(filter(None, procs.gather(self._count())), ""):
            self._uncounted(why)
        window, machine = self.window.over(procs), together(procs.gather(self.monitor.sample()))
        self.totals.merge(window)
        self.window = Totals()
        self.barren = self.barren and not self.totals.samples
        if self.barren and (len(self.totals.bad) >= ENOUGH_BAD or step.position.steps == self.run.total):
            raise DataError(why_none(self.totals.bad))
        self.loss = f"{loss:.3f}"
        figures = {
            "lr": self.run.config.optim.lr * step.lr_factor,
            "epoch": step.position.epoch,
            **{name: figure for name, figure in window.speed(self.limit).items() if figure is not None},
            "data_wait": window.waiting,
            **machine,
        }
        learned = {} if step.skipped else {"loss": loss, "grad_norm": step.grad_norm.item()}
        self.metrics.log(step.position.steps, **learned, **figures)
        self.metrics.advance(loss=self.loss, tokens_s=f"{figures['tokens_per_s']:,.0f}")
        for warning in self.monitor.warnings(self.totals, machine):
            self.metrics.tell(f"warning: {warning}")

    def _count(self) -> str:
        """Count the operations of the open window; why that cannot be done, if it cannot."""
        try:
            if self.meter is not None:
                self.window.count(self.meter)
        except Uncountable as error:
            return str(error)
        return ""

    def _uncounted(self, why: str) -> None:
        """No process counts any more: figures would be of a part of the rows."""
        self.meter = None
        self.metrics.tell(f"warning: no figures of FLOPs: {why}")

    def _stop_at_bad(self, step: StepReport) -> None:
        bad = [pair for batch in step.batches for pair in batch.stats.bad]
        if self.run.config.data.on_bad_sample == "error" and bad:
            raise DataError(f"sample '{bad[0][0]}': {bad[0][1]} (--on-bad-sample skip leaves such samples out)")


def _barren(path: Path) -> bool:
    return not any(line.get("samples_per_s") for line in read_lines(path))
