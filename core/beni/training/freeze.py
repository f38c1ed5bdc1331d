"""What is trained, as data: part → trainable, learning rate, weight decay. Applied after weights are loaded."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from beni.config import OptimConfig
from beni.errors import ConfigError
from beni.model.modeling import BeniForConditionalGeneration
from beni.model.parts import ADAPTER, NEW_TOKENS, blocks_of, part_of
from beni.training.quantize import quantized_layers, sizes


@dataclass(frozen=True, slots=True)
class FreezeRow:
    """One part of a model."""

    part: str
    parameters: int
    trained: int
    """Of its parameters."""
    frozen_layers: int
    """So many of its first layers are frozen although it is trained."""
    lr: float
    """Peak learning rate."""
    weight_decay: float
    """Of its weight matrices."""
    origin: str
    """Where its weights came from, or `random`; and the scheme, if it is quantized."""

    @property
    def trainable(self) -> bool:
        """Whether any of it is trained."""
        return self.trained > 0


ENCODER = "encoder."
CHECKSUMS = 1 << 40
"""How many checksums there are; sums of some thousands of them are exact in a float."""


def freeze_table(
    model: BeniForConditionalGeneration, optim: OptimConfig, origins: Mapping[str, str]
) -> list[FreezeRow]:
    """Decide what is trained.

    Args:
        model: the model; its parameters are counted by part.
        optim: `train` names parts, else those train that start from random weights. Adapters and embeddings of new
            tokens always train, a part that has adapters or is quantized never does.
        origins: parts whose weights were loaded, and from where.

    Raises:
        ConfigError: an option names a part that the model does not have, or `train` one that has adapters, or the
            others one that is frozen; or more layers are to be frozen than there are.
    """
    counts: dict[str, int] = {}
    for name, size in sizes(model):
        counts[part_of(name)] = counts.get(part_of(name), 0) + size
    adapted = {part for part in counts if part + ADAPTER in counts}
    quantized = {part_of(path): layer.scheme.name for path, layer in quantized_layers(model).items()}
    wanted = {part for name in optim.train for part in _named(name, counts, "--train")}
    if both := sorted(wanted & adapted):
        raise ConfigError(f"--train {both[0]}: it has adapters, which train while it is frozen; leave out one of them")
    trained = wanted if optim.train else counts.keys() - origins.keys() - adapted - quantized.keys()
    trained |= {part for part in counts if part == NEW_TOKENS or part.endswith(ADAPTER)}
    lr = {part: optim.lr_pretrained if part in origins else optim.lr for part in counts}
    decay = dict.fromkeys(counts, optim.weight_decay)
    frozen = dict.fromkeys(counts, 0)
    options: list[tuple[str, dict[str, Any], Mapping[str, Any]]] = [
        ("--part-lr", lr, optim.part_lr),
        ("--part-weight-decay", decay, optim.part_weight_decay),
        ("--freeze-layers", frozen, optim.freeze_layers),
    ]
    for option, values, given in options:
        for name in sorted(given, key=len):  # encoder before encoder.KEY, which is about less
            meant = _named(name, counts, option)
            if meant and not trained & set(meant):
                raise ConfigError(f"{option} {name}: {meant[0]} is frozen; leave this out, or train it with --train")
            values.update(dict.fromkeys(meant, given[name]))
    left = counts | {part: counts[part] - _frozen(model, part, count) for part, count in frozen.items() if count}
    weights = {part: origins.get(part, "random") for part in counts}
    weights |= {part: f"{weights[part]}, {scheme}" for part, scheme in quantized.items()}
    return [
        FreezeRow(
            part,
            counts[part],
            left[part] if part in trained else 0,
            frozen[part] if part in trained else 0,
            lr[part],
            decay[part],
            weights[part],
        )
        for part in counts
    ]


def _frozen(model: BeniForConditionalGeneration, part: str, count: int) -> int:
    """Parameters in the first layers of a part."""
    layers = blocks_of(model, part)
    if count > len(layers):
        raise ConfigError(f"--freeze-layers {part} {count}: it has {len(layers) or 'no'} layers")
    return sum(p.numel() for layer in layers[:count] for p in layer.parameters())


def _named(name: str, parts: Iterable[str], option: str) -> list[str]:
    """The parts that a name means: itself, or all encoders."""
    known = list(parts)
    matches = [part for part in known if part == name or part.startswith(f"{name}.")]
    if not matches and name not in ("connector", "fusion"):  # these may be without parameters: nothing is wrong
        close = difflib.get_close_matches(name, known, n=1)
        raise ConfigError(
            f"{option} {name}: the model has no such part{f'; did you mean {close[0]}?' if close else ''} "
            f"(it has {', '.join(known)})"
        )
    return matches


def apply(model: BeniForConditionalGeneration, table: Sequence[FreezeRow]) -> None:
    """Set `requires_grad` by the table."""
    trained = trained_names(model, table)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)


def trained_names(model: BeniForConditionalGeneration, table: Sequence[FreezeRow]) -> set[str]:
    """The parameters that the table says are trained."""
    rows = {row.part: row for row in table}
    frozen = {
        (row.part, id(parameter))
        for row in table
        if row.frozen_layers
        for layer in blocks_of(model, row.part)[: row.frozen_layers]
        for parameter in layer.parameters()
    }
    return {
        name
        for name, parameter in model.named_parameters()
        if rows[part := part_of(name)].trainable and (part, id(parameter)) not in frozen
    }


def parameter_groups(
    model: BeniForConditionalGeneration, table: Sequence[FreezeRow], optim: OptimConfig
) -> list[dict[str, Any]]:
    """Optimizer groups: per part, weight matrices with decay, everything else (norms, biases, latents, embeddings)
    without, and gates, which learn faster."""
    decayed = _decayed(model)
    rows = {row.part: row for row in table}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            row = rows[part_of(name)]
            peak = row.lr * (optim.gate_speed if parameter.numel() == 1 else 1.0)
            decay = row.weight_decay if id(parameter) in decayed else 0.0
            groups.setdefault((peak, decay), []).append(parameter)
    return [
        {"params": parameters, "lr": peak, "peak_lr": peak, "weight_decay": decay}
        for (peak, decay), parameters in groups.items()
    ]


def _decayed(model: nn.Module) -> set[int]:
    """Ids of the weights of linear and convolutional layers, except where they are tied to an embedding."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    layers = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    own = (m.named_parameters(recurse=False) for m in model.modules() if isinstance(m, layers))
    return {id(parameter) for named in own for name, parameter in named if name == "weight"} - embeddings


def assert_gradients(model: BeniForConditionalGeneration, table: Sequence[FreezeRow]) -> None:
    """After a backward pass: what is trainable got a gradient, what is frozen got none.

    Raises:
        ConfigError: names the first parameter that contradicts the table, or a part that gradients do not reach.
    """
    trained = trained_names(model, table)
    reached = {name: parameter.grad is not None for name, parameter in model.named_parameters()}
    for name, got in reached.items():
        part = part_of(name)
        if name not in trained and got:
            raise ConfigError(f"parameter '{name}' of {part} is frozen but received a gradient")
        if name in trained and not got:
            raise ConfigError(_unreached(name, any(reached[each] for each in trained if part_of(each) == part)))


def _unreached(name: str, others: bool) -> str:
    """What to say of a parameter without a gradient; `others` of its part may have one."""
    part = part_of(name)
    if part.endswith(ADAPTER):
        hint = "; its layer is not called, only its weight is read: leave it out with --peft-targets"
    elif others:
        hint = ""
    else:
        return (
            f"{part} is to be trained but no gradient reached it: it, or a part behind it, cuts gradients off "
            f"(`detach()`, `torch.no_grad()`, `.data`), or does not use what it is given"
        )
    return f"parameter '{name}' of {part} is to be trained but received no gradient{hint}"


def show(table: Iterable[FreezeRow]) -> str:
    """The table, for people."""
    lines = [f"{'part':<16}{'parameters':>14}  {'trained':<9}{'peak lr':>9}{'decay':>7}  weights"]
    for row in table:
        lr, decay = (f"{row.lr:.1e}", f"{row.weight_decay:g}") if row.trainable else ("–", "–")
        trained = "frozen" if not row.trainable else f"behind {row.frozen_layers}" if row.frozen_layers else "yes"
        lines.append(f"{row.part:<16}{row.parameters:>14,}  {trained:<9}{lr:>9}{decay:>7}  {row.origin}")
    return "\n".join(lines)


def frozen_encoders(table: Sequence[FreezeRow]) -> set[str]:
    """Keys of the encoders of which nothing is trained, adapters in them neither."""
    rows = [row for row in table if row.part.startswith(ENCODER)]
    keys = [row.part.removeprefix(ENCODER).removesuffix(ADAPTER) for row in rows]
    return set(keys) - {key for key, row in zip(keys, rows, strict=True) if row.trainable}


def frozen_checksum(model: nn.Module) -> int:
    """A checksum of this process's share of all frozen parameters: their bits as whole numbers, added up.

    The sum over processes, modulo `CHECKSUMS`, is that of the whole model, however it is sharded: of what several
    processes have copies of, only the first one's counts.
    """
    total = 0
    for parameter in model.parameters():
        if not parameter.requires_grad and not _is_copy(parameter):
            local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
            local = local.float() if local.dtype is torch.bfloat16 else local  # as it is where others compute
            whole = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[local.element_size()]
            total += int(local.detach().contiguous().view(whole).sum(dtype=torch.int64))
    return total % CHECKSUMS


def _is_copy(parameter: torch.Tensor) -> bool:
    """Whether another process before this one has the same share of a parameter."""
    if not isinstance(parameter, DTensor):
        return False
    places = zip(parameter.device_mesh.get_coordinate() or (), parameter.placements, strict=True)
    return any(place and placement.is_replicate() for place, placement in places)
