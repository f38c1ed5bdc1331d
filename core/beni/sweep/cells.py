"""What a sweep consists of: cells, each trained with several seeds."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from beni.config import DEFAULT_PARTS, RECORDED, SINGLE_KINDS, RunConfig

DECIDES = (
    *("select", "device", "dtype", "replicas", "frozen_encoders", "compile", "eval_every"),
    *("activation_checkpointing", "activation_checkpointing_every", "peak_tflops"),
)
"""Options of how a run happens that its figures depend on; of those in the other tables all do."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A combination that is compared with others: one configuration, but for the seed."""

    varied: Mapping[str, str]
    """Options in which the cells of the sweep differ, and what they are here; all, if that is only one cell."""
    config: RunConfig

    @property
    def name(self) -> str:
        """For messages and pages: what is varied."""
        values = [value if is_part(option) else f"{option} {value}" for option, value in self.varied.items()]
        return " × ".join(values) or " × ".join(self.parts)

    @property
    def parts(self) -> list[str]:
        """Names of the parts that are not the default ones, the connector and the fusion among them in any case."""
        config = self.config
        named = [("encoder", part.plugin.name) for part in config.encoders.values()]
        named += [(kind, getattr(config, kind).plugin.name) for kind in SINGLE_KINDS]
        return [name for kind, name in named if kind in ("connector", "fusion") or name != DEFAULT_PARTS[kind]]

    def at(self, seed: int, lr: float | None = None) -> RunConfig:
        """The configuration of one run."""
        run = replace(self.config.run, seed=seed)
        optim = self.config.optim if lr is None else replace(self.config.optim, lr=lr)
        return replace(self.config, run=run, optim=optim)


def is_part(option: str) -> bool:
    """Whether an option chooses a part."""
    return option in ("encoder", *SINGLE_KINDS)


def placed(config: RunConfig, folder: Path) -> RunConfig:
    """A run's configuration with its own folder in that of a sweep: the same for the same run, and for no other."""
    cell = Cell({}, config)
    name = "-".join("".join(c if c.isalnum() else "_" for c in part) for part in cell.parts)[:80]
    out = folder / "runs" / f"{name}-{identity(config)}" / f"seed-{config.run.seed}"
    return replace(config, run=replace(config.run, out=str(out), resume="auto", dry_run=False))


def identity(config: RunConfig) -> str:
    """Equal for runs whose figures should be equal but for chance: not the seed, and not where things are kept."""
    return hashlib.sha256(json.dumps(figured_by(config.to_dict()), sort_keys=True).encode()).hexdigest()[:10]


def figured_by(tables: Mapping[str, Any]) -> dict[str, Any]:
    """What decides a run's figures but for chance, of its tables as `config.json` has them."""
    run = tables.get("run", {})
    deciding = {name: value for name, value in run.items() if name in DECIDES}
    deciding["feature_cache"] = bool(run.get("feature_cache"))  # which spares operations and time
    data = {name: value for name, value in tables.get("data", {}).items() if name != "workers"}
    kept = {name: table for name, table in tables.items() if name not in RECORDED}
    return kept | {"run": deciding, "data": data}


def grid(configs: Sequence[tuple[Mapping[str, str], RunConfig]]) -> tuple[list[Cell], list[int]]:
    """Cells and seeds of the combinations of a sweep: those that differ in the seed alone are one cell."""
    cells: dict[str, Cell] = {}
    for varied, config in configs:
        rest = {option: value for option, value in varied.items() if option != "seed"}
        cells.setdefault(identity(config), Cell(rest, config))
    return list(cells.values()), list(dict.fromkeys(config.run.seed for _, config in configs))
