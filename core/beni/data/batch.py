"""Documents to one packed row: ids, targets, positions, segments, where images go, and their pixels."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from beni.data.document import IGNORE, Composer, Document, DocumentImage
from beni.data.features import FeatureStore, joined
from beni.data.images import blank_image, draw, load_image, mean_colour, to_pixels
from beni.data.memory import Reader, plan_memory
from beni.errors import ImageError
from beni.nn.plan import CrossPlan, RowPlan, plan_row
from beni.nn.plan import trees as trees_of
from beni.sample import Sample, Turn
from beni.types import Crop, Features, ImageLayout, Segment, Size

Prepare = Callable[[Image.Image, str | bytes], Image.Image]
"""Changes a decoded image; the second argument identifies it."""


class VisualInput:
    """The distinct images of a batch, and how each was cut: encoder inputs, or what the encoders made of them before.

    Args:
        pixels: by encoder key; empty where there are features.
        layouts: of the images.
        features: by encoder key, or empty.
    """

    def __init__(
        self,
        pixels: Mapping[str, Float[Tensor, "C 3 height width"]],
        layouts: Sequence[ImageLayout],
        features: Mapping[str, Features] | None = None,
    ) -> None:
        self.pixels = dict(pixels)
        self.layouts = tuple(layouts)
        self.features = dict(features or {})

    def to(self, device: torch.device) -> "VisualInput":
        pixels = {key: each.to(device, non_blocking=True) for key, each in self.pixels.items()}
        return VisualInput(pixels, self.layouts, {key: each.to(device) for key, each in self.features.items()})


class Placement:
    """Where visual tokens go.

    Text positions `at_V` take the visual tokens `source_V`. The visual memory is made of the tokens `memory_M` (None:
    of all, in order), and `cross` says who reads what in it.
    """

    def __init__(
        self,
        at_V: Int[Tensor, " V"],
        source_V: Int[Tensor, " V"],
        memory_M: Int[Tensor, " M"] | None,
        cross: CrossPlan,
    ) -> None:
        self.at_V = at_V
        self.source_V = source_V
        self.memory_M = memory_M
        self.cross = cross

    def to(self, device: torch.device) -> "Placement":
        memory_M = None if self.memory_M is None else self.memory_M.to(device)
        return Placement(self.at_V.to(device), self.source_V.to(device), memory_M, self.cross.to(device))


class PackedBatch:
    """One packed row: what a process computes between two communications.

    Position `keep_K[i]` must predict the token `targets_K[i]`, which counts `weights_K[i]` in the loss (None: all count
    alike); no other position has a target. Plain class: FSDP must not rebuild it.
    """

    def __init__(
        self,
        ids_T: Int[Tensor, " T"],
        keep_K: Int[Tensor, " K"],
        targets_K: Int[Tensor, " K"],
        weights_K: Float[Tensor, " K"] | None,
        plan: RowPlan,
        visual: VisualInput,
        placement: Placement,
        segments: tuple[Segment, ...],
        stats: "RowStats",
    ) -> None:
        self.ids_T = ids_T
        self.keep_K = keep_K
        self.targets_K = targets_K
        self.weights_K = weights_K
        self.plan = plan
        self.visual = visual
        self.placement = placement
        self.segments = segments
        self.stats = stats

    def to(self, device: torch.device) -> "PackedBatch":
        return PackedBatch(
            self.ids_T.to(device, non_blocking=True),
            self.keep_K.to(device, non_blocking=True),
            self.targets_K.to(device, non_blocking=True),
            None if self.weights_K is None else self.weights_K.to(device, non_blocking=True),
            self.plan.to(device),
            self.visual.to(device),
            self.placement.to(device),
            self.segments,
            self.stats,
        )


@dataclass(frozen=True, slots=True)
class RowStats:
    """Counts of a row, dummies excluded, and the samples that had to be left out."""

    samples: int
    tokens: int
    """Positions of the language model."""
    targets: int
    weight: float
    """Of all targets together: what the summed losses of a step are divided by. Without weights, their number."""
    images: int
    visual_tokens: int
    bad: tuple[tuple[str, str], ...] = ()
    """(sample id, what was wrong) of samples whose images could not be read."""


@dataclass(slots=True)
class _Row:
    """A row under construction."""

    ids: list[np.ndarray]
    targets: list[np.ndarray]
    weights: list[float]
    """Of the targets in each segment."""
    positions: list[np.ndarray]
    segments: list[Segment]
    images: list[tuple[int, int, DocumentImage]]
    """(segment, position in the row, image)"""

    @property
    def length(self) -> int:
        return self.segments[-1].end if self.segments else 0

    def add(self, document: Document, start: int, end: int, parent: int) -> None:
        """Append ids[start:end] of a document as one segment."""
        offset, index = self.length, len(self.segments)
        targets = np.full(end - start, IGNORE)
        targets[:-1] = document.labels[start + 1 : end]
        self.ids.append(document.ids[start:end])
        self.targets.append(targets)
        self.weights.append(document.sample.loss_weight)
        self.positions.append(np.arange(start, end))
        self.segments.append(Segment(offset, offset + end - start, parent))
        self.images += [(index, offset + i.at - start, i) for i in document.images if start <= i.at < end]


def pack(
    trees: Sequence[Sequence[Document]],
    composer: Composer,
    prepare: "Prepare | None" = None,
    features: FeatureStore | None = None,
    pictures: "Pictures | None" = None,
) -> PackedBatch:
    """Build a row.

    Args:
        trees: groups of documents that share their head (`Document.head_key`), or single documents.
        composer: made the documents.
        prepare: changes each decoded image (augmentation, blanking), or None.
        features: has what the encoders make of each image as it is; None: encoders see the images.
        pictures: of a caller who has loaded images already, in place of the two above.

    Images are loaded here. A document whose image cannot be read is left out and reported in `stats.bad`. A row
    without any image gets an isolated dummy document with the smallest legal one, so that every process runs every
    part; it has no target and sends exact zero gradients.
    """
    pictures = pictures or Pictures(composer, prepare, features)
    bad: list[tuple[str, str]] = []
    row = _Row([], [], [], [], [], [])
    samples = 0
    for tree in trees:
        good = []
        for document in tree:
            try:
                for image in document.images:
                    pictures.load(image)
                good.append(document)
            except ImageError as error:
                bad.append((document.sample.id, str(error)))
        _add_tree(row, good)
        samples += len(good)
    tokens, images = row.length, list(row.images)
    if not images:
        dummy = dummy_document(composer)
        pictures.load(dummy.images[0])
        row.add(dummy, 0, len(dummy), -1)
    ids, targets = np.concatenate(row.ids), np.concatenate(row.targets)
    keep = np.flatnonzero(targets != IGNORE)
    weights = _weights(row, keep)
    order = distinct([image for _, _, image in row.images])
    stats = RowStats(
        samples=samples,
        tokens=tokens,
        targets=len(keep),
        weight=float(len(keep) if weights is None else weights.sum(dtype=np.float64)),
        images=len(images),
        visual_tokens=sum(sum(image.counts) for _, _, image in images),
        bad=tuple(bad),
    )
    return PackedBatch(
        torch.from_numpy(ids),
        torch.from_numpy(keep),
        torch.from_numpy(targets[keep]),
        None if weights is None else torch.from_numpy(weights),
        plan_row(row.segments, np.concatenate(row.positions)),
        pictures.stack(order),
        _place(row, ids, order, composer),
        tuple(row.segments),
        stats,
    )


def _add_tree(row: _Row, documents: Sequence[Document]) -> None:
    if len(documents) == 1:
        row.add(documents[0], 0, len(documents[0]), -1)
        return
    for index, document in enumerate(documents):
        if index == 0:
            row.add(document, 0, document.head, -1)
            head = len(row.segments) - 1
        row.add(document, document.head, len(document), head)


def _weights(row: _Row, keep: np.ndarray) -> np.ndarray | None:
    """[K] what each target counts; None, and nothing to multiply by, where all of them count once."""
    if all(weight == 1 for weight in row.weights):
        return None
    weights = np.array(row.weights, dtype=np.float32)
    return np.repeat(weights, [segment.end - segment.start for segment in row.segments])[keep]


def _place(row: _Row, ids: np.ndarray, order: Sequence[DocumentImage], composer: Composer) -> Placement:
    """Where the visual tokens of the row's images go, and what text sees of them."""
    starts = memory_starts([image.counts for image in order])
    number = {image.ref.key: index for index, image in enumerate(order)}
    at = np.flatnonzero(ids == composer.image_token)
    source = [np.arange(starts[n], starts[n + 1]) for n in (number[i.ref.key] for _, _, i in row.images)]
    source_V = np.concatenate(source) if len(at) else np.empty(0, dtype=np.int64)
    readers: list[Reader] = []
    for index, segment in enumerate(row.segments):
        inherited = readers[segment.parent].images if segment.parent >= 0 else ()
        own = tuple((position, number[image.ref.key]) for owner, position, image in row.images if owner == index)
        readers.append(Reader(segment.start, segment.end, inherited + own))
    ranges = [(tree[0].start, tree[-1].end) for tree in trees_of(row.segments)]
    return place(at, source_V, plan_memory(readers, ranges, starts, len(ids), composer.fusion.reads))


def place(at: np.ndarray, source: np.ndarray, memory: tuple[np.ndarray | None, CrossPlan]) -> Placement:
    """A placement from indices made on the host."""
    memory_M, cross = memory
    return Placement(
        torch.from_numpy(at),
        torch.from_numpy(source),
        None if memory_M is None else torch.from_numpy(memory_M),
        cross,
    )


def memory_starts(counts: Sequence[tuple[int, ...]]) -> np.ndarray:
    """[I + 1] where each image's visual tokens begin in the flat memory, and its end."""
    return np.concatenate([[0], np.cumsum([sum(blocks) for blocks in counts])]).astype(np.int64)


def dummy_document(composer: Composer) -> Document:
    """A document that is nothing but the smallest blank image, without a target."""
    ref = blank_image(next(iter(composer.encoders.values())))
    layout = composer.layout(ref)
    shapes = composer.connector.shapes(layout, composer.encoders)
    ids = np.array(composer.spell(layout, shapes), dtype=np.int64)
    sample = Sample("dummy", (Turn("user", (0,)),), (ref,))
    return Document(sample, ids, np.full(len(ids), IGNORE), (DocumentImage(ref, 0, layout, shapes),), head=0)


def distinct(images: Sequence[DocumentImage]) -> list[DocumentImage]:
    """The different images among these, by first appearance: the order of the visual memory."""
    found: dict[str | bytes, DocumentImage] = {}
    for image in images:
        found.setdefault(image.ref.key, image)
    return list(found.values())


class Pictures:
    """The distinct images of a batch, each loaded and cut once however many documents show it."""

    def __init__(
        self, composer: Composer, prepare: "Prepare | None" = None, features: FeatureStore | None = None
    ) -> None:
        self.composer = composer
        self.prepare = prepare
        self.features = features
        self._crops: dict[str | bytes, dict[str, list[Image.Image]]] = {}
        self._features: dict[str | bytes, dict[str, Features]] = {}

    def load(self, image: DocumentImage) -> None:
        """Decode and cut an image, or read its features, unless it is here already.

        Raises:
            ImageError: it cannot be read, or has no features.
        """
        key = image.ref.key
        if key in self._crops or key in self._features:
            return
        if self.features is not None:
            self._features[key] = self.features.read(image)
            return
        picture = load_image(image.ref)
        if self.prepare is not None:
            picture = self.prepare(picture, key)
        self._crops[key] = {
            name: [draw(picture, crop, mean_colour(spec), spec.resample) for crop in self._fitted(image, picture)[name]]
            for name, spec in self.composer.encoders.items()
        }

    def _fitted(self, image: DocumentImage, picture: Image.Image) -> Mapping[str, tuple[Crop, ...]]:
        """The planned crops, with boxes of the real size where the plan did not need to know it."""
        if self.composer.needs_size:
            return image.layout.crops
        return self.composer.view.layout(Size(*picture.size), self.composer.encoders).crops

    def stack(self, order: Sequence[DocumentImage]) -> VisualInput:
        """Encoder inputs of these images, or their features."""
        layouts = [image.layout for image in order]
        if self.features is not None:
            own = [self._features[image.ref.key] for image in order]
            return VisualInput({}, layouts, {key: joined([each[key] for each in own]) for key in self.features.folders})
        pixels = {
            name: to_pixels([crop for image in order for crop in self._crops[image.ref.key][name]], spec)
            for name, spec in self.composer.encoders.items()
        }
        return VisualInput(pixels, layouts)
