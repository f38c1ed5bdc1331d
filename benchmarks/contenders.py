"""Who is compared: beni with its defaults, a plain loop over padded batches, and transformers' Trainer.

Each runs in a process of its own and stops at a turnstile behind every window of steps, until it is its turn again.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import islice
from multiprocessing.connection import Connection
from typing import Any

import torch
from native import Dataset, collate, twin, unused_token
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler

from beni.cli.options import parse_run
from beni.config import RunConfig
from beni.data.loader import batches
from beni.processes import processes
from beni.training.checkpoint import Position
from beni.training.loop import StepReport, clip, train_loop
from beni.training.metrics import peak_memory_bytes
from beni.training.prepare import Run, prepare
from beni.training.ready import ready

WORKERS = 2
"""Processes that load, for transformers; beni has its default."""
STEP = 8
"""Samples of a step in transformers' loops; beni packs about as many."""


@dataclass(frozen=True, slots=True)
class Contest:
    """What all train, and for how long."""

    encoder: str
    """Folder of the vision encoder's configuration."""
    data: str
    """LLaVA JSON."""
    out: str
    llm: tuple[str, ...]
    """`--llm` and its options."""
    dtype: str
    """fp32, bf16 (autocast for the others), or auto: beni's default."""
    steps: int
    window: int
    """Steps between two stops."""

    def config(self) -> RunConfig:
        """beni's run: all defaults, but for what everybody trains, and a constant learning rate."""
        words = [
            "--encoder",
            f"hf:{self.encoder}",
            "--encoder.weights",
            "none",
            *self.llm,
            "--data",
            f"llava:{self.data}",
        ]
        words += ["--train", "connector", "llm", "--steps", str(self.steps), "--schedule", "constant", "--warmup", "0"]
        words += ["--lr", "1e-4", "--lr-pretrained", "1e-4", "--weight-decay", "0", "--out", self.out]
        return parse_run([*words, "--dtype", self.dtype], "compare")


@dataclass(slots=True)
class Turnstile:
    """Counts steps, and lets the process on when it is its turn."""

    pipe: Connection
    window: int
    steps: int = 0
    samples: int = 0
    losses: list[float] = field(default_factory=list)
    clock: float = 0.0

    def enter(self) -> None:
        """Before the first step."""
        self.pipe.send(("ready", peak_memory_bytes(torch.device("cpu"))))
        self._wait()

    def step(self, samples: int, loss: float | None = None) -> None:
        """Behind each step; Trainer tells no loss of its own."""
        self.steps += 1
        self.samples += samples
        if loss is not None:
            self.losses.append(loss)
        if self.steps % self.window == 0:
            seconds = time.perf_counter() - self.clock
            memory = peak_memory_bytes(torch.device("cpu"))
            self.pipe.send(Stretch(seconds, self.samples, tuple(self.losses), memory))
            self._wait()

    def _wait(self) -> None:
        self.pipe.recv()
        self.samples, self.losses, self.clock = 0, [], time.perf_counter()


@dataclass(frozen=True, slots=True)
class Stretch:
    """A window of a contender."""

    seconds: float
    samples: int
    losses: tuple[float, ...]
    peak_memory_bytes: int

    @property
    def samples_per_s(self) -> float:
        return self.samples / self.seconds


def beni(contest: Contest, pipe: Connection) -> None:
    """As `beni train` would."""
    config = contest.config()
    with processes(config.run) as procs:
        run = prepare(config, procs, None)
        start = ready(run)
        turn = Turnstile(pipe, contest.window)
        rows = batches(run.feed, Position().place, contest.steps, config.data.workers)

        def after_step(step: StepReport) -> None:
            turn.step(sum(batch.stats.samples for batch in step.batches), step.loss.item())

        turn.enter()
        with closing(rows):
            train_loop(
                run.built.model, start.optimizer, rows, Position(), contest.steps, config.optim, procs, after_step
            )


def plain(contest: Contest, pipe: Connection) -> None:
    """Padded batches of the very samples of beni's steps, in a plain loop."""
    with _native(contest) as native:
        model, dataset = native.model.train(), native.dataset
        model.model.vision_tower.eval()
        steps = [list(step) for step in islice(native.steps(), contest.steps)]
        loader = DataLoader(
            dataset, batch_sampler=steps, collate_fn=collate, num_workers=WORKERS, multiprocessing_context="fork"
        )
        optimizer = torch.optim.AdamW(native.trained(), lr=1e-4, betas=native.run.config.optim.betas, weight_decay=0)
        turn = Turnstile(pipe, contest.window)
        turn.enter()
        for batch in loader:
            with _autocast(contest):
                loss = model(**batch).loss
            loss.backward()
            clip(native.trained(), native.run.config.optim.clip)
            optimizer.step()
            optimizer.zero_grad()
            turn.step(len(batch["input_ids"]), loss.item())


def trainer(contest: Contest, pipe: Connection, micro_batch: int) -> None:
    """transformers' Trainer, at its best for one micro-batch."""
    with _native(contest) as native:
        turn = Turnstile(pipe, contest.window)
        arguments = TrainingArguments(
            output_dir=contest.out,
            max_steps=contest.steps,
            per_device_train_batch_size=micro_batch,
            gradient_accumulation_steps=STEP // micro_batch,
            train_sampling_strategy="group_by_length",
            dataloader_num_workers=WORKERS,
            bf16=contest.dtype != "fp32",
            use_cpu=True,
            optim="adamw_torch_fused",
            learning_rate=1e-4,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=native.run.config.optim.clip,
            adam_beta1=native.run.config.optim.betas[0],
            adam_beta2=native.run.config.optim.betas[1],
            remove_unused_columns=False,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )

        class Stops(TrainerCallback):
            def on_train_begin(self, *_: Any, **__: Any) -> None:
                turn.enter()

            def on_step_end(self, *_: Any, **__: Any) -> None:
                turn.step(STEP)

        lengths = native.dataset.lengths()

        class Grouped(Trainer):
            """With lengths that are known, where it would load all images to learn them."""

            def _get_train_sampler(self, train_dataset: Any = None) -> LengthGroupedSampler:
                return LengthGroupedSampler(STEP, lengths=lengths)

        Grouped(
            native.model, arguments, data_collator=collate, train_dataset=native.dataset, callbacks=[Stops()]
        ).train()


@contextmanager
def _native(contest: Contest) -> "Iterator[Native]":
    config = contest.config()
    with processes(config.run) as procs:
        run = prepare(config, procs, None)
        samples = run.rows.sources[0]
        token = unused_token(run.built, samples)
        model = twin(run.built, contest.encoder, token)
        run.built.model.to("meta")  # its weights are in the other one now
        yield Native(run, model, Dataset(samples, replace(run.built.composer, max_tokens=0), token))


def _autocast(contest: Contest) -> Any:
    return nullcontext() if contest.dtype == "fp32" else torch.autocast("cpu", torch.bfloat16)


@dataclass(frozen=True, slots=True)
class Native:
    """transformers' model with beni's weights, and beni's samples."""

    run: Run
    model: Any
    dataset: Dataset

    def steps(self) -> Iterator[Sequence[int]]:
        """Indices of the samples of beni's steps."""
        plan = self.run.rows.plan
        for place in plan.walk(0, 0):
            yield [member.index for row in plan.step(*place) for tree in row for member in tree]

    def trained(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]
