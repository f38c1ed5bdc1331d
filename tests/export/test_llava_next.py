"""Exported as `llava_next`: the same logits for pictures of every shape, and as many tokens as its processor writes."""

import json
import random
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaNextForConditionalGeneration

from beni.cli.main import main
from beni.errors import ExportError
from beni.export import export as exporting
from beni.export.export import export
from beni.export.llava_next import LLAVA_NEXT
from beni.export.probes import Probe, Shown, pixel_differences
from beni.model.build import Built
from beni.sample import NEWLINE_MARK, ImageRef
from beni.types import Size
from beni_plugins.views.anyres import Anyres
from tests.export.small import answers, answers_without_beni, check_same, off, trained
from tests.model.small import make, talk
from tests.model.test_saved import save
from tests.plugins.encoders.test_hf import SIDE, STD, publish

PATCH = 8
VIEW: dict[str, Any] = {"name": "anyres", "background": "black"}
MANY_GRIDS = ["(1x1),...,(4x3)", "8x1"]
CASES: dict[str, dict[str, Any]] = {
    "clip": {},
    "siglip": {"family": "siglip_vision_model", "encoder": {"layers": [-1]}},
    "several layers": {"family": "dinov2", "encoder": {"layers": [1, -2]}},
    "many grids": {"family": "siglip_vision_model", "view": VIEW | {"pinpoints": MANY_GRIDS}},
    "one grid": {"view": VIEW | {"pinpoints": ["1x1"]}},
}
SHAPES = [(64, 64), (97, 31), (31, 97), (33, 32), (200, 40), (17, 200), (1, 1), (1, 3), (640, 480), (500, 333)]
"""Wide, tall, tiny, and such as fill no grid."""


def kept(built: Built, size: Size) -> int:
    """Rows, or columns, of tokens that show a picture in its tiles; 0 of one that is thinner than a token."""
    merge = built.composer.view.layout(size, built.composer.encoders).merge
    assert merge is not None
    rows, cols = (SIDE // PATCH * tiles for tiles in merge.tiles)
    return min(size.height * cols // size.width, size.width * rows // size.height)


@pytest.mark.parametrize("case", CASES)
def test_computes_the_same(case: str, tmp_path: Path) -> None:
    tables = {"view": VIEW} | CASES[case]
    built = trained(tmp_path, tables.pop("family", "clip_vision_model"), **tables)
    told = export(str(tmp_path / "model"), "llava_next", str(tmp_path / "out"))
    assert told["class"] == "LlavaNextForConditionalGeneration"
    assert told["logits_differ_by"] < 1e-5 and told["pixels_differ_by"] < 0.01
    shapes = [Size(*shape) for shape in SHAPES if kept(built, Size(*shape))]
    assert len(shapes) >= 8
    check_same(built, tmp_path / "out", LLAVA_NEXT, LlavaNextForConditionalGeneration, shapes)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Built, Path]:
    """A model whose view knows many grids, and the folder of its export."""
    folder = tmp_path_factory.mktemp("exported")
    built = trained(folder, "siglip_vision_model", view=VIEW | {"pinpoints": MANY_GRIDS})
    main(["export", str(folder / "model"), "--to", "llava_next", "--out", str(folder / "out")])
    return built, folder / "out"


def test_answers_the_same_without_beni(exported: tuple[Built, Path], tmp_path: Path) -> None:
    """Pictures of one padded batch have different numbers of tiles."""
    built, out = exported
    alone, together = answers_without_beni(out, tmp_path)
    assert alone == together == answers(built)


def test_the_newline_is_the_vector_of_the_class(exported: tuple[Built, Path]) -> None:
    built, out = exported
    native = AutoModelForImageTextToText.from_pretrained(out)
    ids, weight = built.model.new_tokens.ids, built.model.new_tokens.weight
    assert weight is not None
    row = ids.index(built.tokenizer.convert_tokens_to_ids(NEWLINE_MARK))
    assert torch.equal(native.model.image_newline, weight[row])
    assert ids[row] in native.generation_config.suppress_tokens


def sizes() -> Iterator[Size]:
    """Random ones up to a side of 3,000, many of them of simple ratios, where rounding decides, and very long ones."""
    chance = random.Random(0)
    for _ in range(500):
        width, height = chance.randint(1, 3000), chance.randint(1, 3000)
        yield Size(width, chance.choice([height, width, 2 * width, max(1, width // 2), max(1, 3 * width // 4)]))
        yield Size(chance.randint(1, 3000), chance.randint(1, 30))
        yield Size(chance.randint(1, 30), chance.randint(1, 3000))


def test_every_size_has_as_many_tokens_or_is_thinner_than_one(exported: tuple[Built, Path]) -> None:
    """Of a picture that is thinner than a token on its grid the class keeps no tile; beni keeps those that show it."""
    built, out = exported
    composer, processor = built.composer, AutoProcessor.from_pretrained(out)
    thin = 0
    for size in sizes():
        layout = composer.view.layout(size, composer.encoders)
        shapes = composer.connector.shapes(layout, composer.encoders)
        tokens = len(composer.spell(layout, shapes))
        counted = processor._get_number_of_features(size.height, size.width, SIDE, SIDE)
        if tokens == counted:
            continue
        assert kept(built, size) == 0 and tokens > counted, size
        thin += 1
    assert thin


@pytest.mark.parametrize("shape", [(64, 64), (150, 50), (90, 61), (33, 250)])
def test_pictures_are_cut_and_padded_alike(exported: tuple[Built, Path], shape: tuple[int, int]) -> None:
    """To three levels of 255: rounding in resampling."""
    built, out = exported
    across, down = np.meshgrid(*(np.linspace(0, 255, side) for side in shape))
    picture = Image.fromarray(np.stack([across, down, 255 - across], axis=-1).astype(np.uint8))
    file = BytesIO()
    picture.save(file, "png")
    ref = ImageRef(data=file.getvalue(), size=Size(*shape))
    found = AutoProcessor.from_pretrained(out).image_processor([picture], return_tensors="pt")
    assert found["image_sizes"].tolist() == [[shape[1], shape[0]]]
    [wanted] = Shown.of(Probe(talk("x", (0,), ("",), images=(ref,)), answered=False), built.composer).crops
    levels = (found["pixel_values"][0] - wanted) * torch.tensor(STD).view(3, 1, 1) * 255
    assert levels.abs().max() < 3.5


def test_sides_that_are_written_twice(tmp_path: Path) -> None:
    """The class calculates with one number."""
    publish(tmp_path / "encoder", "vit")
    file = tmp_path / "encoder" / "config.json"
    twice = {"image_size": [SIDE, SIDE], "patch_size": [PATCH, PATCH]}
    file.write_text(json.dumps(json.loads(file.read_text()) | twice))
    save(make("inline", encoders={"main": {"name": "hf", "model": str(file.parent)}}, view=VIEW), tmp_path / "model")
    assert export(str(tmp_path / "model"), "llava_next", str(tmp_path / "out"))["logits_differ_by"] < 1e-5


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "view": ({"view": {"name": "single"}}, "view Single cuts pictures in another way"),
    "merge": ({"view": VIEW | {"merge": "spatial"}}, "--view.merge spatial_unpad"),
    "shrink": ({"view": VIEW | {"shrink_to": 2}}, "--view.shrink-to 0"),
    "overview": ({"view": VIEW | {"overview": False}}, "--view.overview$"),
    "background": ({"view": {"name": "anyres"}}, "--view.background black"),
    "around": ({"fusion": {"name": "inline", "before": ["<img>"]}}, "nor --fusion.after"),
    "newline": ({"fusion": {"name": "inline", "newline": "row"}}, "--fusion.newline none"),
    "levels": (
        {"parts": "deepstack", "encoder": {"layers": [1, 2]}, "connector": {"name": "mlp"}},
        "between the layers",
    ),
    "projector": ({"connector": {"name": "mlp", "kind": "linear"}}, "'linear'.*mlp2x_gelu"),
    "connector": ({"connector": {"name": "concat"}}, "connector Concat"),
    "last": ({"encoder": {"layers": []}}, "--encoder.layers -2"),
    "size": ({"encoder": {"size": 48}, "family": "dinov2"}, "48 pixels.*--encoder.size 0"),
    "registers": ({"family": "dinov2_with_registers"}, "5 tokens in front"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_equal_is_refused(case: str, tmp_path: Path) -> None:
    tables, said = REFUSED[case]
    tables = {"view": VIEW} | tables
    trained(tmp_path, tables.pop("family", "clip_vision_model"), **tables)
    with pytest.raises(ExportError, match=said):
        export(str(tmp_path / "model"), "llava_next", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_another_background_would_be_found_in_the_pixels(
    exported: tuple[Built, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And be refused if a view said that it is the class's."""
    _, out = exported
    pinpoints = ["1x1", "2x1", "1x3"]
    grey = trained(tmp_path, "siglip_vision_model", view={"name": "anyres", "pinpoints": pinpoints})
    assert max(pixel_differences(AutoProcessor.from_pretrained(out), grey.composer)) > 0.01
    monkeypatch.setattr(
        Anyres,
        "native",
        lambda self, to, spec: {"image_grid_pinpoints": [[SIDE, SIDE], [SIDE, 2 * SIDE], [3 * SIDE, SIDE]]},
    )
    with pytest.raises(ExportError, match=r"LlavaNextImageProcessor cannot.*--view anyres --view.background black"):
        export(str(tmp_path / "model"), "llava_next", str(tmp_path / "new"))


def test_a_newline_that_is_off_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(exporting.TARGETS, "llava_next", off(LLAVA_NEXT, "model.image_newline"))
    trained(tmp_path, view=VIEW)
    with pytest.raises(ExportError, match="computes something else"):
        export(str(tmp_path / "model"), "llava_next", str(tmp_path / "out"))
