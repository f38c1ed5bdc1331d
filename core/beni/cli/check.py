"""`beni check KIND NAME [OPTIONS]`: does a part keep what its kind promises?"""

import dataclasses
import difflib
import os
import re
import time
import warnings
from collections.abc import Sequence
from typing import Any

from transformers.utils import logging

from beni.cli import held
from beni.cli.options import parse
from beni.config import Part, choose, to_dict
from beni.errors import ConfigError
from beni.errors import counted as plural
from beni.interfaces import load
from beni.registry import GROUPS
from beni.testing import run_all, suite_for
from beni.testing.suite import Outcome


def check(arguments: Sequence[str], program: str) -> None:
    """Run the conformance suite of a part; prints one line per check.

    Raises:
        BeniError: the part is not installed, cannot be imported, or has no such option.
        SystemExit: with code 1 where a check failed.
    """
    words = list(arguments)
    usage = f"usage: {program} {'|'.join(GROUPS)} NAME [--KIND.OPTION VALUE …]"
    if {"-h", "--help"} & set(words[:2]):
        print(f"{usage}\n\nRun the conformance suite of a part. NAME may be FILE.py:CLASS; with --help its options.")
        return
    if len(words) < 2 or words[0] not in GROUPS or words[1].startswith("-"):
        close = difflib.get_close_matches(words[0], GROUPS, n=1) if words and words[0] not in GROUPS else []
        raise ConfigError(f"{usage}{(close and f': did you mean {close[0]}?') or ''}")
    kind, name, *rest = words
    part = _with_options(kind, choose(kind, name), rest, program)
    load(kind, part)
    print(f"{kind} {part.plugin.name}: {part.plugin.target} ({part.plugin.owner})", flush=True)
    _quiet()
    started = time.perf_counter()
    found = {"ok": 0, "failed": 0, "skipped": 0}
    met: dict[str, str] = {}
    suite = suite_for(kind, part.plugin.reference, to_dict(part.config))
    if refusal := suite.refusal():
        raise ConfigError(
            f"{kind} '{part.plugin.name}' refuses the small model that it is checked in; choose options for one with "
            f"a grid of 4x4 and 3 layers: {refusal}"
        )
    for outcome in run_all(suite):
        found[outcome.status] += 1
        print(f"{outcome.status:<8} {outcome.check}{_why(outcome, met)}", flush=True)
    counted = ", ".join(f"{count} {status}" for status, count in found.items() if count)
    if len(met) < found["failed"]:
        counted += f" for {plural(len(met), 'reason')}"
    print(f"{sum(found.values())} checks in {time.perf_counter() - started:.0f} s: {counted}")
    if found["failed"]:
        raise SystemExit(1)


def _why(outcome: Outcome, met: dict[str, str]) -> str:
    """Behind a check's name: its reason; of one that only differs in numbers from a reason told before, where.

    Args:
        outcome: the check's.
        met: reasons without their numbers, but for those of lines, and the check that told each; one more is added.
    """
    if not outcome.reason:
        return ""
    if outcome.status == "failed":
        first = met.setdefault(re.sub(r"(?<![:\d])\d+", "", outcome.reason), outcome.check)
        if first != outcome.check:
            return f": as above, '{first}'"
    return f": {outcome.reason}"


def _with_options(kind: str, part: Part, arguments: Sequence[str], program: str) -> Part:
    """The part with the options of the command line, spelled as for training (`--connector.num-latents 8`)."""
    part = held.choose_held(part, kind, arguments)
    options: type[Any] = dataclasses.make_dataclass("Check", [held.option_field(kind, part)], frozen=True)
    parsed = parse(options, arguments, f"{program} {kind} {part.plugin.name}", dict(held.names(part, kind)))
    return held.with_options(part, getattr(parsed, kind))


def _quiet() -> None:
    """Progress bars and advice of libraries, here and in the processes that checks start, would hide the lines."""
    os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")
