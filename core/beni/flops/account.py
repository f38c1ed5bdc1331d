"""The floating point operations of packed rows: what each part of a model computes for the documents in them.

Running a model on the meta device counts any row exactly, but takes as long as an eager forward pass of small tensors:
too long for each step of a training. Two things hold for every model here, and the count rests on them:

- documents, and distinct images, are independent of each other: their costs add up;
- what a decoder and the blocks in it compute is a sum over what there is of positions, of positions seen by positions,
  of targets, of visual tokens, of memory, and of memory read by positions (`Reading`).

So a few small rows are run on the meta device, the cost of one of each follows, and is held against one more row. What
is counted is what the documents need: no padding, and no blank image of a row that has none.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from beni.data.batch import PackedBatch, Placement, RowStats, VisualInput
from beni.errors import PluginError, Uncountable, first_line, place_of
from beni.flops.count import Flops, PartFlops, added, count, scaled
from beni.interfaces import load
from beni.model.modeling import BeniForConditionalGeneration
from beni.nn.plan import plan_cross, plan_row
from beni.types import ImageLayout, Segment, Size, VisualTokens

Result = TypeVar("Result")

META = torch.device("meta")
ENCODER = "encoder."
"""Names of parts that are encoders begin so."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What there is for a decoder to compute, of one row or of many.

    Attention is counted in pairs: of a position and one that it sees, or of a position and a token of the visual memory
    that it reads. A dense product of queries and keys computes all pairs of a segment with itself and its ancestors,
    and of a document with its images; masks leave about half of the former (`seen`).
    """

    positions: float = 0
    """T, of the language model."""
    pairs: float = 0
    seen_pairs: float = 0
    targets: float = 0
    """K, positions that have logits."""
    visual: float = 0
    """V, visual tokens among the positions."""
    memory: float = 0
    """M, tokens of the visual memory."""
    reads: float = 0
    seen_reads: float = 0

    @classmethod
    def of(cls, batch: PackedBatch, visual_tokens: int) -> "Reading":
        """That of a packed row.

        Args:
            batch: a blank image that stands in a row without images does not count.
            visual_tokens: of its distinct images.
        """
        segments = batch.segments if batch.stats.images else batch.segments[:-1]
        before: list[int] = []
        for segment in segments:
            before.append(before[segment.parent] + segments[segment.parent].length if segment.parent >= 0 else 0)
        lengths = [segment.length for segment in segments]
        text = cls(
            positions=sum(lengths),
            pairs=sum(n * (n + m) for n, m in zip(lengths, before, strict=True)),
            seen_pairs=sum(n * (n + 1) / 2 + n * m for n, m in zip(lengths, before, strict=True)),
            targets=len(batch.keep_K),
        )
        if not batch.stats.images:
            return text
        placement, cross = batch.placement, batch.placement.cross
        seen = torch.cat([mask_B1LM.sum(-1).flatten() for _, _, mask_B1LM in cross.buckets] or [torch.zeros(0)])
        return replace(
            text,
            visual=len(placement.at_V),
            memory=visual_tokens if placement.memory_M is None else len(placement.memory_M),
            reads=sum(int((_filled(index_BL) * _filled(memory_BM)).sum()) for index_BL, memory_BM, _ in cross.buckets),
            seen_reads=float(seen[cross.slot_T[cross.slot_T < len(seen)]].sum()),
        )


def _filled(index_BX: Tensor) -> Tensor:
    """[B] entries in each line of a bucket; behind them its first one is repeated."""
    return (index_BX != index_BX[:, :1]).sum(-1) + 1


class RowFlops(NamedTuple):
    """Floating point operations by part."""

    full: PartFlops
    """Attention as a dense product: what MFU figures count, by convention."""
    causal: PartFlops
    """Of attention only what masks leave."""


class RowFacts(NamedTuple):
    """What a row's cost depends on."""

    layouts: tuple[ImageLayout, ...]
    """Of its distinct images."""
    reading: Reading
    encoded: bool
    """Whether encoders run, or their features were there before."""


class _Probe(NamedTuple):
    """Sizes of a row of one document."""

    positions: int = 8
    targets: int = 1
    visual: int = 1
    memory: int = 1

    def amounts(self) -> list[int]:
        """One of each for which there is a cost: a row, and what `Reading` has."""
        return [
            1,
            self.positions,
            self.positions**2,
            self.targets,
            self.visual,
            self.memory,
            self.positions * self.memory,
        ]


_PROBES = (
    _Probe(),
    _Probe(positions=16),
    _Probe(positions=24),
    _Probe(targets=5),
    _Probe(visual=5),
    _Probe(memory=5),
    _Probe(positions=16, memory=5),
)
"""As many as there are amounts, each telling one more of them from the others."""
_HELD_OUT = _Probe(positions=40, targets=7, visual=9, memory=11)
_IN_TEXT, _IN_MEMORY = (0, 1, 2, 3, 4), (0, 1, 2, 3, 5, 6)
"""Which amounts, and probes, matter where visual tokens are among the positions, and where they are read from a
memory."""


class FlopMeter:
    """Counts what a model computes, row by row.

    Args:
        model: before it is sharded, with `requires_grad` set as for training. Its weights are neither read nor changed.
        recomputed: modules of it whose activations are recomputed.
        kept: operations whose results are kept all the same (`beni.flops.count.count`).

    Raises:
        Uncountable: a part does not run on the meta device, or its cost is no sum over what it gets.
    """

    def __init__(
        self, model: BeniForConditionalGeneration, recomputed: Sequence[nn.Module] = (), kept: Sequence[Any] = ()
    ) -> None:
        with _told():
            self._model, twins = hollow_copy(model)
        self._recomputed = [twins[module] for module in recomputed]
        self._kept = kept
        self.specs = model.config.encoder_specs()
        self._connector: Any = model.config.part("connector").config
        self.view = load("view", model.config.part("view"))(model.config.part("view").config)
        self._smallest = self.view.layout(Size(1, 1), self.specs)
        self._images: dict[Any, tuple[PartFlops, PartFlops]] = {}
        """By form of image: what comes once in a row, and with each image."""
        self._each = self._solve()
        """Of each amount of a decoder."""

    def row(self, batch: PackedBatch) -> RowFlops:
        """What a row costs."""
        return self.cost(self.facts(batch))

    def facts(self, batch: PackedBatch) -> RowFacts:
        """What a row's cost depends on: quickly told, and small."""
        layouts = batch.visual.layouts if batch.stats.images else ()
        tokens = sum(sum(self._connector.counts(layout, self.specs)) for layout in layouts)
        return RowFacts(layouts, Reading.of(batch, tokens), not batch.visual.features)

    def cost(self, facts: RowFacts) -> RowFlops:
        """What a row costs; an image of a new form takes a run on the meta device."""
        visual, decoded = self.images(facts.layouts), self.decoder(facts.reading)
        if not facts.encoded:
            visual = {part: flops for part, flops in visual.items() if not part.startswith(ENCODER)}
        return RowFlops(added(visual, decoded.full), added(visual, decoded.causal))

    def images(self, layouts: Sequence[ImageLayout]) -> PartFlops:
        """What encoders and connectors compute for a row's distinct images."""
        found = [self._image(layout) for layout in layouts]
        return added(*(once for once, _ in found[:1]), *(each for _, each in found))

    def decoder(self, of: Reading) -> RowFlops:
        """What the language model, its head and a fusion's blocks compute in a row."""
        rest = of.targets, of.visual, of.memory
        full = [1, of.positions, of.pairs, *rest, of.reads]
        seen = [1, of.positions, of.seen_pairs, *rest, of.seen_reads]
        return RowFlops(*(added(*map(scaled, self._each, amounts)) for amounts in (full, seen)))

    def _image(self, layout: ImageLayout) -> tuple[PartFlops, PartFlops]:
        canvases = tuple((key, tuple(crop.canvas for crop in crops)) for key, crops in layout.crops.items())
        form = canvases, self._connector.counts(layout, self.specs)
        if form not in self._images:
            (_, one), (_, two) = (self._see([layout] * number) for number in (1, 2))
            each = added(two, scaled(one, -1))
            self._images[form] = added(one, scaled(each, -1)), each
        return self._images[form]

    def _solve(self) -> list[PartFlops]:
        """The cost of one of each amount."""
        visual, _ = self._see([self._smallest])
        needed = _IN_TEXT if self._model.fusion.config.reads == "nothing" else _IN_MEMORY
        rows = [self._decode(_PROBES[index], visual) for index in needed]
        amounts = np.array([_PROBES[index].amounts() for index in needed], dtype=float)[:, needed]
        costs: list[PartFlops] = [{} for _ in _PROBES]
        for part in {part for row in rows for part in row}:
            counted = np.array([row.get(part, Flops()) for row in rows])
            for index, solved in zip(needed, np.linalg.solve(amounts, counted).round(), strict=True):
                costs[index][part] = Flops(*solved.tolist())
        expected = added(*map(scaled, costs, _HELD_OUT.amounts()))
        found = self._decode(_HELD_OUT, visual)
        for part, flops in found.items():
            wanted = expected.get(part, Flops())
            if not np.allclose(flops, wanted, rtol=1e-6):
                raise Uncountable(
                    f"the FLOPs of {part} cannot be told from the sizes of a batch: for {_HELD_OUT} it computes "
                    f"{flops.model:,.0f}, where smaller batches make one expect {wanted.model:,.0f}"
                )
        return costs

    def _see(self, layouts: Sequence[ImageLayout]) -> tuple[VisualTokens, PartFlops]:
        """What encoders and connectors make of a row's distinct images on the meta device, and what they compute."""
        parts = {f"{ENCODER}{key}": [part] for key, part in self._model.encoders.items()}
        visual = _images(layouts, list(self._model.encoders))
        return self._count(lambda: self._model.see(visual), parts, "connector")

    def _decode(self, probe: _Probe, visual: VisualTokens) -> PartFlops:
        """What all other parts compute for a row on the meta device, given its visual tokens."""
        model = self._model
        row = _row(probe, _images([self._smallest], list(model.encoders)), model.fusion.config.reads != "nothing")
        parts = {"llm": [model.llm], "head": [model.get_output_embeddings()]}
        parts["fusion"] = [insert.block for insert in model.fusion.inserts().values()]
        _, counts = self._count(lambda: model.packed_loss(model.packed_logits(row, visual), row), parts, "fusion")
        return counts

    def _count(
        self, work: Callable[[], Result], parts: Mapping[str, Sequence[nn.Module]], rest: str
    ) -> tuple[Result, PartFlops]:
        with _told():
            return count(work, parts, rest, self._recomputed, self._kept)


@contextmanager
def _told() -> Iterator[None]:
    """A part may raise anything; its author is told what."""
    try:
        yield
    except PluginError:
        raise
    except Exception as error:
        raise Uncountable(
            f"the FLOPs of this model cannot be counted: a part of it does not run without values, on PyTorch's "
            f"meta device ({type(error).__name__}: {first_line(error)}, {place_of(error)}); see docs/flops.md"
        ) from error


def _images(layouts: Sequence[ImageLayout], encoders: Sequence[str]) -> VisualInput:
    """Images on the meta device."""
    pixels = {}
    for key in encoders:
        sizes = [crop.canvas for layout in layouts for crop in layout.crops[key]]
        pixels[key] = torch.empty(len(sizes), 3, sizes[0].height, sizes[0].width, device=META)
    return VisualInput(pixels, tuple(layouts))


def _row(probe: _Probe, visual: VisualInput, reads: bool) -> PackedBatch:
    """A row of one document on the meta device; where its visual tokens stand and who reads which does not matter."""
    length = probe.positions
    inline = 0 if reads else probe.visual
    memory = probe.memory if reads else 0
    spans = np.tile([0, memory], (length, 1))
    placement = Placement(
        torch.arange(inline),
        torch.zeros(inline, dtype=torch.long),
        torch.zeros(memory, dtype=torch.long),
        plan_cross([(0, length)], spans),
    )
    segments = (Segment(0, length),)
    stats = RowStats(1, length, probe.targets, float(probe.targets), len(visual.layouts), inline)
    batch = PackedBatch(
        torch.zeros(length, dtype=torch.long),
        torch.arange(probe.targets),
        torch.zeros(probe.targets, dtype=torch.long),
        None,
        plan_row(segments, np.arange(length)),
        visual,
        placement,
        segments,
        stats,
    )
    return batch.to(META)


def hollow_copy(
    model: BeniForConditionalGeneration,
) -> tuple[BeniForConditionalGeneration, Mapping[nn.Module, nn.Module]]:
    """A copy of a model on the meta device that takes no memory, and which of its modules stands for which.

    Linear layers that keep their weight in another form are ordinary frozen ones in it: that form is no arithmetic of
    the model's.
    """
    known: dict[int, Any] = {}
    for tensor in chain(model.parameters(), model.buffers()):
        empty = torch.empty_like(tensor, device=META)
        known[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    hollow = copy.deepcopy(model, known)
    twins = dict(zip(model.modules(), hollow.modules(), strict=True))
    for module in list(hollow.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear) and "weight" not in dict(child.named_parameters(recurse=False)):
                dense = nn.Linear(child.in_features, child.out_features, child.bias is not None, device=META)
                setattr(module, name, dense.requires_grad_(False))
    return hollow.train(), twins
