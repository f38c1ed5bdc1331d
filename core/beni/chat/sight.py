"""Where a model looked when it wrote an answer: weights that its parts tell, brought to the places they stand for.

The answer is read once more, in one pass in which somebody listens (`beni.nn.looks`). Every number shown is one that
the model has computed with, or a mean of such; where tokens of a connector have no place of their own (latents), what
the answer reads of them is multiplied by what they read of the picture.

Shapes: L layers, A words (tokens) of the answer, S spots, V visual tokens, M visual memory, T positions, N tokens of an
encoder's maps.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from beni.chat.conversation import Conversation
from beni.chat.talker import Said, Talker
from beni.data.batch import Pictures, Placement, distinct
from beni.data.document import Document, DocumentImage
from beni.data.images import load_image
from beni.data.padded import pad
from beni.eval.generate import padding_id, to_device
from beni.model.modeling import BeniForConditionalGeneration
from beni.model.placement import place_padded
from beni.nn.looks import Listener, Reading, listen
from beni.nn.places import NOWHERE, Place, crop_places
from beni.types import EncoderSpec, ImageLayout, Size, VisualTokens

RESOLUTION = 96
"""Cells along the longer side of a heat map."""


@dataclass(frozen=True)
class Spots:
    """What weights are about: tokens that are somewhere in one of the pictures."""

    places: tuple[Place | None, ...]
    """None: nobody says where."""
    picture_S: np.ndarray
    """Which picture each belongs to."""


@dataclass(frozen=True)
class Sight:
    """One kind of weights: for each layer and word, how much goes to each spot."""

    name: str
    weights_LAS: Float[Tensor, "L A S"]
    """Mean over heads. What is missing to one goes elsewhere: to text, to other latents, or to nothing."""
    spots: Spots
    by_word: bool
    """Whether words have weights of their own; else there is one row, of visual tokens, whatever is asked."""

    def heat(self, picture: int, size: Size, layer: int | None = None, word: int | None = None) -> np.ndarray:
        """[rows, cols] a map of a picture: the weight in each of its cells, spread evenly over each spot's place.

        It sums to the part of all weight that lies on the picture.

        Args:
            picture: its number.
            size: of it.
            layer: counted from 0; None: the mean of all.
            word: counted from 0; None: the mean of all.
        """
        mass_AS = self.weights_LAS.mean(0) if layer is None else self.weights_LAS[layer]
        mass_S = (mass_AS.mean(0) if word is None or not self.by_word else mass_AS[word]).double().numpy()
        chosen = [s for s in np.flatnonzero(self.spots.picture_S == picture) if self.spots.places[s] is not None]
        return _spread([self.spots.places[s] or NOWHERE for s in chosen], mass_S[chosen], size)


@dataclass(frozen=True)
class Looks:
    """All that can be shown of one answer."""

    pictures: tuple[Image.Image, ...] = ()
    """The different pictures of the conversation, by first appearance."""
    words: tuple[str, ...] = ()
    """The tokens of the answer, as text."""
    sights: tuple[Sight, ...] = ()
    why_none: str = ""
    """Where there is nothing to show."""


def look(talker: Talker, asked: Conversation, said: Said) -> Looks:
    """Where a model looked.

    Args:
        talker: the model.
        asked: the conversation up to the question.
        said: the answer.

    Raises:
        ImageError: a picture cannot be read any more.
    """
    document = talker.prompt(asked)
    if not document.images:
        return Looks(
            why_none="There is no picture in this conversation; what was trained on pictures may say anything."
        )
    if not said.ids:
        return Looks(why_none="Nothing was answered.")
    images = distinct(document.images)
    pictures = [load_image(image.ref) for image in images]
    view, encoders = talker.composer.view, talker.composer.encoders
    layouts = [view.layout(Size(*picture.size), encoders) for picture in pictures]
    words = said.ids[:-1] if len(said.ids) > 1 and said.ids[-1] in talker.composer.template.stop_ids else said.ids
    told, placement = _listened(talker, document, images, said.ids, len(words))
    sights = tuple(_sights(talker, told, placement, images, layouts))
    tokenizer = talker.composer.template.tokenizer
    return Looks(
        tuple(pictures),
        tuple(str(tokenizer.decode([word])) for word in words),
        sights,
        ""
        if sights
        else "This model has no weights that say where it looks: its visual tokens have no place in the "
        "picture, and its connector does not tell what they read.",
    )


def _listened(
    talker: Talker, document: Document, images: Sequence[DocumentImage], answer: Sequence[int], words: int
) -> tuple[Listener, Placement]:
    """What is told while the first words of an answer are read, and where visual tokens were."""
    composer, model = talker.composer, talker.model
    inputs = pad([document], Pictures(composer), padding_id(composer))
    said = torch.tensor([answer[:-1]], dtype=torch.long)  # the last token is written, and not read
    inputs["input_ids"] = torch.cat([inputs["input_ids"], said], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    counts = tuple(image.counts for image in images)
    placement = place_padded(
        inputs["input_ids"],
        inputs["image_ids"],
        inputs["image_starts"],
        VisualTokens(torch.empty(sum(map(sum, counts)), 0), counts),
        composer.image_token,
        composer.fusion.reads,
    )
    written_A = torch.arange(len(document) - 1, len(document) - 1 + words)  # a token is written one place before it
    with torch.no_grad(), listen(written_A) as listener:
        model(**to_device(inputs, model.device), use_cache=False, logits_to_keep=1)
    return listener, placement


def _sights(
    talker: Talker,
    told: Listener,
    placement: Placement,
    images: Sequence[DocumentImage],
    layouts: Sequence[ImageLayout],
) -> Iterator[Sight]:
    encoders, connector = talker.composer.encoders, talker.composer.connector
    places = [place for layout in layouts for place in connector.places(layout, encoders)]
    counts = [sum(image.counts) for image in images]
    tokens = Spots(tuple(places), np.repeat(np.arange(len(images)), counts))
    owners = _by_owner(talker.model, told.readings)
    latents = _latents(owners.get("connector", ()), len(places))

    def placed(name: str, weights_LAV: Tensor) -> Sight | None:
        if latents is not None and None in places:
            spots = _spots([latents[0]], encoders, layouts)
            return Sight(name, weights_LAV @ latents[1], spots, by_word=True)
        return None if set(places) <= {None} else Sight(name, weights_LAV, tokens, by_word=True)

    found: list[Sight | None] = []
    if told.memory:
        memory_LAM = torch.stack(told.memory)
        found.append(placed("answer, by cross-attention", _onto(memory_LAM, placement.memory_M, len(places))))
    if len(placement.at_V):
        row_LAT = torch.stack(told.itself)
        found.append(
            placed("answer, by self-attention", _onto(row_LAT[..., placement.at_V], placement.source_V, len(places)))
        )
    for owner, readings in owners.items():
        found.append(_reading_sight(f"visual tokens, in the {owner}", readings, encoders, layouts))
    yield from (sight for sight in found if sight is not None)


def _onto(weights_LAM: Tensor, index_M: Tensor | None, count: int) -> Float[Tensor, "L A V"]:
    """Weights of things that stand for visual tokens, some of them perhaps for the same."""
    if index_M is None:
        return weights_LAM
    return weights_LAM.new_zeros(*weights_LAM.shape[:-1], count).index_add(-1, index_M, weights_LAM)


def _by_owner(model: BeniForConditionalGeneration, readings: Sequence[Reading]) -> dict[str, list[Reading]]:
    """Readings by the part whose layer told them."""
    parts: dict[str, nn.Module] = {"connector": model.connector, "fusion": model.fusion}
    parts |= {f"connector of level {n}": each for n, each in enumerate(model.level_connectors, start=1)}
    found: dict[str, list[Reading]] = {}
    for name, part in parts.items():
        own = {id(module) for module in part.modules()}
        if mine := [reading for reading in readings if id(reading.reader) in own]:
            found[name] = mine
    return found


def _layers(readings: Sequence[Reading]) -> list[list[Reading]]:
    """Readings by layer, in order; a layer tells one for each encoder and each run of crops."""
    ids = list(dict.fromkeys(id(reading.reader) for reading in readings))
    ordered = sorted(readings, key=lambda reading: ids.index(id(reading.reader)))
    return [list(layer) for _, layer in groupby(ordered, key=lambda reading: id(reading.reader))]


def _latents(readings: Sequence[Reading], count: int) -> tuple[Reading, Float[Tensor, "V N"]] | None:
    """What visual tokens read of the maps, mean over layers; None where it is not told of each of them."""
    layers = _layers([reading for reading in readings if reading.in_order])
    if not layers or any(sum(len(part.weights_VR) for part in layer) != count for layer in layers):
        return None
    total = sum(grid.count for grid in readings[0].grids)
    dense = [
        torch.cat([torch.zeros(len(r.weights_VR), total).scatter_add(1, r.index_VR, r.weights_VR) for r in layer])
        for layer in layers
    ]
    return readings[0], torch.stack(dense).mean(0)


def _reading_sight(
    name: str, readings: Sequence[Reading], encoders: Mapping[str, EncoderSpec], layouts: Sequence[ImageLayout]
) -> Sight:
    """What visual tokens read, mean over all of them, of the maps of all encoders one after another."""
    maps = list({reading.encoder: reading for reading in readings}.values())
    sizes = [sum(grid.count for grid in reading.grids) for reading in maps]
    first = {reading.encoder: sum(sizes[:n]) for n, reading in enumerate(maps)}
    rows = []
    for layer in _layers(readings):
        row_S = torch.zeros(sum(sizes))
        queries = sum(len(reading.weights_VR) for reading in layer if reading.encoder == layer[0].encoder)
        for reading in layer:
            row_S.index_add_(0, reading.index_VR.flatten() + first[reading.encoder], reading.weights_VR.flatten())
        rows.append(row_S[None] / queries)
    return Sight(name, torch.stack(rows), _spots(maps, encoders, layouts), by_word=False)


def _spots(maps: Sequence[Reading], encoders: Mapping[str, EncoderSpec], layouts: Sequence[ImageLayout]) -> Spots:
    """The tokens of encoders' maps."""
    places: list[Place | None] = []
    pictures: list[int] = []
    for reading in maps:
        key = list(encoders)[reading.encoder]
        crops = [(number, crop) for number, layout in enumerate(layouts) for crop in layout.crops[key]]
        for (number, crop), grid in zip(crops, reading.grids, strict=True):
            places += crop_places(crop, grid, encoders[key])
            pictures += [number] * grid.count
    return Spots(tuple(places), np.array(pictures))


def _spread(places: Sequence[Place], mass_S: np.ndarray, size: Size) -> np.ndarray:
    """[rows, cols] of a picture, each place's mass spread over the cells that it covers."""
    cols, rows = (max(1, round(side * RESOLUTION / max(size))) for side in size)
    boxes_S4 = np.array([place.box for place in places]).reshape(-1, 4)
    shares_S = np.array([place.share for place in places])
    down_SR = _overlap(boxes_S4[:, 1], boxes_S4[:, 3], np.linspace(0, size.height, rows + 1))
    across_SC = _overlap(boxes_S4[:, 0], boxes_S4[:, 2], np.linspace(0, size.width, cols + 1))
    return np.einsum("s,sr,sc->rc", mass_S * shares_S, down_SR, across_SC, optimize=True)


def _overlap(first_S: np.ndarray, last_S: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """[S, cells] the part of each stretch that lies in each cell."""
    inside = np.minimum(last_S[:, None], edges[1:]) - np.maximum(first_S[:, None], edges[:-1])
    return np.maximum(inside, 0) / np.maximum(last_S - first_S, 1e-12)[:, None]
