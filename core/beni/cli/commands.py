"""The commands, each a few lines around the library."""

import json
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from tqdm import tqdm

from beni.chat.conversation import Conversation
from beni.cli import describe
from beni.cli.options import parse, parse_stages
from beni.cli.printed import printed
from beni.config import RunOptions, choose
from beni.data.spec import judged
from beni.errors import BeniError, ConfigError, counted
from beni.eval.figure import FIGURES
from beni.eval.generate import Sampling, answer_texts
from beni.eval.judge import judge, subset
from beni.eval.prediction import Prediction, summary
from beni.eval.saved import load_saved
from beni.interfaces import load
from beni.processes import processes
from beni.registry import GROUPS, Plugin, available, find
from beni.sample import image_ref
from beni.training.run import train as run_training
from beni.training.stages import train_stages

HEADLINE = (
    *(name for figure in FIGURES for each in figure.all for name in (each.name, f"{each.name}_blind")),
    *("eval_loss", "val_loss", "val_nats_per_char"),
    *("steps", "samples_per_s", "tokens_per_s", "wall_s"),
)
"""What of a result is printed."""


def train(arguments: Sequence[str], program: str) -> None:
    """Train, judge and save; prints the headline figures, of each stage if a file has several."""
    asked = parse_stages(arguments, program)
    if list(asked.stages) == [""]:
        _headline(run_training(asked.stages[""]))
    else:
        train_stages(asked.stages, asked.out, asked.only, done=_headline)


def _headline(result: dict[str, Any]) -> None:
    if "accuracy" in result:
        shown = {key: result[key] for key in HEADLINE if result.get(key) is not None}
        tqdm.write(printed(shown), file=sys.stdout)
        if missing := (result.get("unusable_samples") or 0) + (result.get("skipped_samples") or 0):
            first = (result["unusable"] or result["skipped"])[0]
            told = f"{counted(missing, 'sample')} left out; '{first['id']}': {first['reason']}"
            tqdm.write(f"{told}; report.html and result.json list more" if missing > 1 else told, file=sys.stderr)
        for name, figures in (result.get("evaluations") or {}).items():
            if figures.get("unreadable"):
                told = f"{name}: {counted(figures['unreadable'], 'item')} could not be read, and counted as wrong"
                tqdm.write(f"{told}: predictions.jsonl says why", file=sys.stderr)
        if not result.get("evaluations"):
            tqdm.write("nothing was judged: say with --eval-data on what", file=sys.stderr)


@dataclass(frozen=True, slots=True)
class EvaluateOptions:
    """Judge a saved model, each data spec by its metric: exact match of greedy answers if it names none."""

    model: str
    """Folder of a saved model (RUN/model)."""
    data: tuple[str, ...] = ("easy_vqa",)
    """Data specs, as for training."""
    split: str = ""
    """Split to judge; by default the source's test split."""
    out: str = ""
    """File for one line per item: {id, prediction, target, score, correct …}."""
    limit: int = 0
    """Judge a seeded subset of this many items per spec (0: all)."""
    batch: int = 128
    """Questions answered at a time."""
    max_new_tokens: int = 32
    """Longest answer in tokens."""
    blind: bool = False
    """Blank the images: what can be guessed without looking."""
    seed: int = 0
    """Of the subset."""


def evaluate(arguments: Sequence[str], program: str) -> None:
    """Judge a saved model; prints a JSON summary."""
    options = parse(EvaluateOptions, arguments, program)
    specs = [_with_split(spec, options.split) for spec in options.data]
    with processes(RunOptions()) as procs:
        model, composer = load_saved(options.model, procs.device)
        report = {}
        everything: list[Prediction] = []
        for name, samples in judged(specs, ()).items():
            chosen = subset(samples, options.limit, options.seed)
            if not chosen:
                raise ConfigError(f"data '{name}' has no questions to judge")
            predictions = judge(
                model, composer, chosen, procs, options.batch, options.max_new_tokens, options.blind, label=name
            )
            report[name] = summary(predictions)
            if procs.is_main and (failed := [p for p in predictions if p.error]):
                told = f"{name}: {counted(len(failed), 'item')} could not be read, and counted as wrong"
                print(f"{told}; '{failed[0].id}': {failed[0].error}", file=sys.stderr)
            everything += predictions
        if procs.is_main:
            if options.out:
                Path(options.out).parent.mkdir(parents=True, exist_ok=True)
                Path(options.out).write_text(
                    "".join(json.dumps(p.line(), ensure_ascii=False) + "\n" for p in everything), encoding="utf-8"
                )
            whole = {name: value for name, value in summary(everything).items() if name != "by_tag"}
            print(printed(whole | {"evaluations": report}, indent=1))


@dataclass(frozen=True, slots=True)
class GenerateOptions:
    """Answer one question with a saved model."""

    model: str
    """Folder of a saved model (RUN/model)."""
    prompt: str
    """The question; `<image>` marks say where images go, by default in front."""
    image: tuple[str, ...] = ()
    """Paths or URLs of images."""
    sampling: Annotated[Sampling, tyro.conf.arg(name="")] = field(default_factory=Sampling)


def generate(arguments: Sequence[str], program: str) -> None:
    """Print a saved model's answer."""
    options = parse(GenerateOptions, arguments, program)
    with processes(RunOptions()) as procs:
        model, composer = load_saved(options.model, procs.device)
        said = Conversation().ask(options.prompt, [image_ref(image) for image in options.image])
        document = composer.compose(said.sample(), prompt_only=True)
        [answer] = answer_texts(model, composer, [document], options.sampling)
        print(answer.strip())
        if not answer.strip():
            seen = "" if options.image else ", which saw no picture (--image)"
            print(f"the answer of the model{seen} is empty", file=sys.stderr)


def plugins(arguments: Sequence[str], program: str) -> None:
    """List parts without importing them; with `--verify` import each and say which are broken; or show one."""
    words = list(arguments)
    usage = f"usage: {program} [--verify | show {'|'.join(GROUPS)} NAME]"
    if {"-h", "--help"} & set(words):
        print(f"{usage}\n\nList installed parts; import each and say which are broken; or show one with its options.")
        return
    if words in ([], ["--verify"]):
        for kind in GROUPS:
            print(f"{kind}s")
            for plugin in available(kind):
                broken = _why_broken(plugin) if words else ""
                print(f"  {plugin.typed:<12}  {plugin.owner}  {plugin.target}{broken and f'  BROKEN: {broken}'}")
        return
    if len(words) != 3 or words[0] != "show" or words[1] not in GROUPS:
        raise ConfigError(usage)
    plugin = find(words[1], words[2])
    part = plugin.load()
    print(
        f"{words[1]} {plugin.name}: {plugin.target} ({plugin.owner})\n{plugin.location()}\n\n{describe.about(part)}\n"
    )
    for option in describe.options(part.Config):  # type: ignore[attr-defined]
        print(f"  --{words[1]}.{option.name} {option.type}, by default {option.default}")
        print(textwrap.fill(option.text, 108, initial_indent=" " * 6, subsequent_indent=" " * 6))


def _why_broken(plugin: Plugin) -> str:
    """What is wrong with a part, in one line; empty for one that can be used."""
    try:
        load(plugin.kind, choose(plugin.kind, plugin.reference))
    except BeniError as error:
        return str(error)
    return ""


def _with_split(spec: str, split: str) -> str:
    return f"{spec}{'&' if '?' in spec else '?'}split={split}" if split else spec
