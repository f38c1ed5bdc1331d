"""Frozen configurations: of a part, of a run. Each is its own command line, file format and documentation.

A part declares its options as a frozen dataclass nested in it as `Config`. A `Part` is a chosen class with its options;
a `RunConfig` is everything that decides what a training run computes. Both survive the round trip through JSON and
TOML, and refuse a field they do not know.
"""

import dataclasses
import difflib
import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import pydantic

from beni.errors import ConfigError
from beni.registry import Plugin, find, is_path

ConfigT = TypeVar("ConfigT")


@dataclass(frozen=True, slots=True)
class PartConfig:
    """Base of every part's `Config`; the options of a part without options."""

    argument: ClassVar[str] = ""
    """The option that `NAME:VALUE` sets (`timm:vit_tiny_patch16_224` sets `model`)."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part that was chosen: the class and its options."""

    plugin: Plugin
    config: PartConfig

    def load(self) -> type:
        """The part's class."""
        return self.plugin.load()

    def to_dict(self) -> dict[str, Any]:
        """A flat table: `name`, where it came from, and the options."""
        origin = {"class": self.plugin.target, "distribution": self.plugin.distribution, "version": self.plugin.version}
        return {"name": self.plugin.name, **to_dict(self.config), "origin": origin}


def choose(kind: str, reference: str, options: Mapping[str, Any] | None = None) -> Part:
    """Resolve a reference such as `perceiver`, `timm:vit_tiny_patch16_224` or `my.py:Mine` to a part with its options.

    Args:
        kind: a key of `beni.registry.GROUPS`.
        reference: a name, with `:VALUE` for the part's main option; or a class by path. For an LLM also a Hugging Face
            id (`owner/name`) or a folder.
        options: values of the part's `Config`; the rest keeps its defaults.

    Raises:
        PluginError: no such part.
        ConfigError: an option that the part does not have, or a value of the wrong type.
    """
    options = dict(options or {})
    name, value = reference, ""
    if not is_path(reference):
        if kind == "llm" and ("/" in reference.partition(":")[0] or Path(reference).is_dir()):
            reference = f"hf:{reference}"
        name, _, value = reference.partition(":")
    plugin = find(kind, name)
    config_class = getattr(plugin.load(), "Config", None)
    if not dataclasses.is_dataclass(config_class):
        raise ConfigError(f"{kind} '{name}' ({plugin.target}) has no dataclass `Config`: every part declares its options")
    if value:
        if not config_class.argument:
            raise ConfigError(f"{kind} '{name}' takes nothing behind a colon: write '{name}' instead of '{reference}'")
        options.setdefault(config_class.argument, value)
    config = from_dict(config_class, options, where=f"{kind} '{name}'")
    return Part(plugin, config)  # type: ignore[arg-type]


def part_from_dict(kind: str, table: Mapping[str, Any]) -> Part:
    """The inverse of `Part.to_dict`; resolves the name again on this machine."""
    options = {key: value for key, value in table.items() if key not in ("name", "origin")}
    if "name" not in table:
        raise ConfigError(f"the table of the {kind} has no 'name': it must say which part to use")
    return choose(kind, table["name"], options)


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as plain JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(cls: type[ConfigT], data: Mapping[str, Any], where: str) -> ConfigT:
    """Build a frozen dataclass from plain values, checking every name and type.

    Raises:
        ConfigError: an unknown field (with the closest name) or a value of the wrong type; `where` says whose.
    """
    known = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for key in data:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"it has {', '.join(known) or 'none'}"
            raise ConfigError(f"{where} has no option '{key}': {hint}")
    try:
        return pydantic.TypeAdapter(cls).validate_python(dict(data))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        option = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{where}, option '{option}': {first['msg']} (got {first['input']!r})") from error


@dataclass(frozen=True, slots=True)
class DataConfig:
    """What is trained and judged on."""

    data: tuple[str, ...] = ("easy_vqa",)
    """Training data, one SPEC per source: easy_vqa, shapes, llava:FILE, hf:ID, text:FILE; options as ?key=value&key=value."""
    weights: tuple[float, ...] = ()
    """Relative number of samples drawn from each source; by default every source once per epoch."""
    eval_data: tuple[str, ...] = ()
    """Data judged at the end; by default the test splits of the training sources that have one."""
    eval_limit: int = 0
    """Judge a seeded subset of this many items (0: all); recorded in result.json."""
    template: str = ""
    """Chat template: plain, vicuna, llama_2, chatml, a FILE.jinja, or empty for the LLM's own."""
    on_bad_sample: Literal["skip", "error"] = "skip"
    """What an image that cannot be read does during training: the sample is left out and listed, or the run stops."""
    workers: int = 1
    """Processes that load and cut images; 0 loads in the training process."""
    augment: float = 0.0
    """Strength of label-safe augmentation (shift and zoom) as a share of the image's side; 0: none."""
    eval_batch: int = 128
    """Questions answered at a time."""
    max_new_tokens: int = 32
    """Longest answer in tokens."""


@dataclass(frozen=True, slots=True)
class BatchConfig:
    """The global batch: `rows` packed rows per optimizer step, shared by however many processes there are."""

    rows: int = 2
    """Rows per optimizer step. Each process takes rows / processes of them, one after another."""
    row_tokens: int = 4096
    """Most positions of the language model in a row."""
    row_crops: int = 64
    """Most crops per encoder in a row."""
    row_memory: int = 16384
    """Most visual tokens in a row, wherever the fusion puts them."""


@dataclass(frozen=True, slots=True)
class OptimConfig:
    """AdamW with linear warm-up and cosine decay to zero."""

    steps: int = 0
    """Optimizer steps; 0 means: as many as `epochs` take."""
    epochs: float = 20
    """Passes over the training data, when `steps` is not given."""
    lr: float = 1e-3
    """Peak learning rate of parts that start from random weights."""
    lr_pretrained: float = 2e-5
    """Peak learning rate of parts that were loaded and are trained on."""
    warmup: float = 0.1
    """Share of the steps in which the learning rate rises."""
    weight_decay: float = 0.05
    """Decay of weight matrices; norms, biases, gates, latents and embeddings have none."""
    clip: float = 1.0
    """Largest norm of the whole gradient."""
    train: tuple[str, ...] = ()
    """Parts to train: encoder, encoder.KEY, connector, fusion, llm. By default those that start from random weights."""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Where and how a run happens; nothing here changes which function is learned."""

    out: str = ""
    """Folder of the run; by default runs/<time>-<connector>-<fusion>."""
    resume: str = "never"
    """never, auto (continue the run in --out if it has a checkpoint), or the PATH of a checkpoint."""
    checkpoint_every: int = 0
    """Steps between checkpoints; 0 keeps only the final one."""
    eval_every: int = 0
    """Steps between losses on the validation split; 0 means ten times per run."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the computation (masters are always fp32); auto: bf16 on GPUs that have it, fp32 elsewhere."""
    seed: int = 0
    dry_run: bool = False
    """Build everything, print the freeze table, the plan and one decoded batch, write sample.html, and stop."""


@dataclass(frozen=True, slots=True)
class RunConfig:
    """Everything that decides a run: the parts and the options. `to_dict` is what `config.json` holds."""

    encoders: Mapping[str, Part]
    connector: Part
    fusion: Part
    view: Part
    llm: Part
    data: DataConfig = field(default_factory=DataConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunOptions = field(default_factory=RunOptions)

    def to_dict(self) -> dict[str, Any]:
        """Nested tables of plain values, the same shape as a `--config` file."""
        groups = {name: to_dict(getattr(self, name)) for name in OPTION_GROUPS}
        return {"encoders": {key: part.to_dict() for key, part in self.encoders.items()}} | {
            kind: getattr(self, kind).to_dict() for kind in SINGLE_KINDS
        } | groups

    def training_hash(self) -> str:
        """Identifies what is computed: equal for a run and its continuation, whatever folder or device it uses."""
        table = self.to_dict()
        table.pop("run")
        return hashlib.sha256(json.dumps([table, self.run.seed], sort_keys=True).encode()).hexdigest()[:16]


SINGLE_KINDS = ("connector", "fusion", "view", "llm")
"""The kinds of which a model has exactly one."""
OPTION_GROUPS: dict[str, type] = {"data": DataConfig, "batch": BatchConfig, "optim": OptimConfig, "run": RunOptions}
"""Tables of a configuration file that are not parts."""
DEFAULT_PARTS = {"encoder": "tiny", "connector": "mlp", "fusion": "inline", "view": "single", "llm": "tiny"}


def run_config_from_dict(data: Mapping[str, Any]) -> RunConfig:
    """The inverse of `RunConfig.to_dict`; missing tables take their defaults.

    Raises:
        ConfigError: an unknown table or field.
        PluginError: a part that is not installed here.
    """
    tables = dict(data)
    encoders = tables.pop("encoders", {"main": {"name": DEFAULT_PARTS["encoder"]}})
    singles = {kind: tables.pop(kind, {"name": DEFAULT_PARTS[kind]}) for kind in SINGLE_KINDS}
    for key in tables:
        if key not in OPTION_GROUPS:
            allowed = ["encoders", *SINGLE_KINDS, *OPTION_GROUPS]
            close = difflib.get_close_matches(key, allowed, n=1)
            hint = f"did you mean [{close[0]}]?" if close else f"there are {', '.join(allowed)}"
            raise ConfigError(f"the configuration has no table [{key}]: {hint}")
    return RunConfig(
        encoders={key: part_from_dict("encoder", table) for key, table in encoders.items()},
        **{kind: part_from_dict(kind, table) for kind, table in singles.items()},
        **{name: from_dict(cls, tables.get(name, {}), f"table [{name}]") for name, cls in OPTION_GROUPS.items()},
    )


def read_config_file(path: str | Path) -> dict[str, Any]:
    """A TOML or JSON file as nested tables.

    Raises:
        ConfigError: missing or malformed file; the message has the line.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"there is no configuration file {path}")
    text = path.read_text(encoding="utf-8")
    try:
        return json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (json.JSONDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} is not valid {path.suffix[1:].upper() or 'TOML'}: {error}") from error
