import dataclasses
import re
from pathlib import Path

import pytest

from beni.config import BatchConfig, PartConfig, run_config_from_dict
from beni.data.loader import Rows
from beni.data.plan import Lengths, Plan
from beni.interfaces import View
from beni.model.build import Built, build
from beni.report import show_batch, write_sample
from beni.report.tokens import newline_id, segment_tokens
from beni.sample import ImageRef, Sample, Turn, vqa_sample
from beni.types import Box, Crop, EncoderSpec, Size
from tests.report.drawn import COLOURS, QUESTIONS, MakeRows, picture, questions
from tests.report.pages import Page, embedded


class Halves(View):
    """The whole, then the left and the right half."""

    beni_api = 1
    Config = PartConfig

    def crops(self, size: Size, spec: EncoderSpec) -> tuple[Crop, ...]:
        middle, full = size.width / 2, Box.of(spec.size)
        boxes = (Box.of(size), Box(0.0, 0.0, middle, size.height), Box(middle, 0.0, size.width, size.height))
        return tuple(Crop(spec.size, box, full, int(i > 0), (0, max(0, i - 1))) for i, box in enumerate(boxes))

    def largest(self, spec: EncoderSpec) -> Size:
        return spec.size


def write(tmp_path: Path, rows: Rows, built: dict[str, Built]) -> str:
    write_sample(tmp_path / "sample.html", rows, built["inline"].tokenizer)
    return (tmp_path / "sample.html").read_text(encoding="utf-8")


def chips(html: str, kind: str) -> list[str]:
    """Texts of the strip's tokens of a kind, without those of the legend."""
    strip = html[html.index('<div class="segment"') :]
    return [re.sub("<.*?>", "", text) for text in re.findall(f'<span class="t{kind}" title.*?>(.*?)</span>', strip)]


def test_tokens_targets_images_and_parents_are_shown(
    tmp_path: Path, make_rows: MakeRows, built: dict[str, Built]
) -> None:
    rows = make_rows(questions())
    stats = rows[(0, 0, 0)].stats
    html = write(tmp_path, rows, built)
    assert len(chips(html, " target")) == stats.targets
    assert chips(html, " visual") == ["▦ 64 visual tokens"] * 3
    assert len(chips(html, "")) + stats.targets + stats.visual_tokens == stats.tokens
    assert re.findall(r'class="tag">(.*?)</span>', html)[1:] == [
        "0", "1 ⟵ 0", "2 ⟵ 0", "3 ⟵ 0", "4", "5 ⟵ 4", "6 ⟵ 4", "7 ⟵ 4", "8", "9 ⟵ 8", "10 ⟵ 8", "11 ⟵ 8", "12",
    ]  # fmt: skip
    assert f"10 samples · {stats.tokens} tokens · {stats.targets} targets · 3 images" in Page(html).text


def test_the_picture_stands_next_to_what_the_encoder_gets(
    tmp_path: Path, make_rows: MakeRows, built: dict[str, Built]
) -> None:
    html = write(tmp_path, make_rows(questions()), built)
    page = Page(html)
    assert len(page.all("image")) == 3
    assert [(r["x"], r["y"], r["width"], r["height"]) for r in page.all("rect")] == [("0.0", "0.0", "48.0", "32.0")] * 3
    inputs = [picture for picture, _ in embedded(html)]
    assert [image.size for image in inputs] == [(64, 64)] * 3
    for image, colour in zip(inputs, ((255, 0, 0), (0, 128, 0), (0, 0, 255)), strict=True):
        assert image.convert("RGB").getpixel((20, 32)) == pytest.approx(colour, abs=1)


def test_every_crop_is_outlined_and_labelled_and_images_are_told_apart(tmp_path: Path, built: dict[str, Built]) -> None:
    composer = dataclasses.replace(built["inline"].composer, view=Halves(PartConfig()))
    turns = (Turn("user", (0, 1, "\nis it red?")), Turn("assistant", ("yes",)))
    samples = [Sample("two", turns, (picture("red"), picture("blue", (100, 40))))]
    plan = Plan([Lengths(samples, composer)], (), BatchConfig(), seed=0)
    html = write(tmp_path, Rows([samples], plan, composer), built)
    page = Page(html)
    assert [(r["x"], r["width"]) for r in page.all("rect")] == [
        ("0.0", "48.0"), ("0.0", "24.0"), ("24.0", "24.0"), ("0.0", "100.0"), ("0.0", "50.0"), ("50.0", "50.0"),
    ]  # fmt: skip
    assert re.findall(r"<text.*?>(.*?)</text>", html) == ["0/0,0", "1/0,0", "1/0,1"] * 2
    assert len(embedded(html)) == 6
    assert chips(html, " visual") == ["▦ 192 visual tokens"] * 2


def test_long_rows_are_cut(tmp_path: Path, make_rows: MakeRows, built: dict[str, Built]) -> None:
    samples = [vqa_sample(f"{i}", picture("red", (40 + i, 40)), "is it large? " * 14, "yes") for i in range(20)]
    rows = make_rows(samples)
    html = write(tmp_path, rows, built)
    assert len(chips(html, "")) + len(chips(html, " target")) + len(chips(html, " visual")) == 600
    assert re.search(r"… and [\d,]+ more tokens, \d+ more segments", html)
    assert re.search(r"… and \d+ more images", html)


def test_text_is_escaped_and_nothing_is_loaded(tmp_path: Path, make_rows: MakeRows, built: dict[str, Built]) -> None:
    html = write(tmp_path, make_rows([vqa_sample("x", picture("red"), "<script>alert(1)</script>", "<b>yes")]), built)
    page = Page(html)
    assert not page.all("script") and not page.all("b") and not page.all("link")
    links = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")]
    assert links and all(link is not None and link.startswith("data:image/") for link in links)


def test_unreadable_images_and_rows_without_images(
    tmp_path: Path, make_rows: MakeRows, built: dict[str, Built]
) -> None:
    gone = vqa_sample("gone", ImageRef(path=str(tmp_path / "gone.png"), size=Size(8, 8)), "is it red?", "yes")
    html = write(tmp_path, make_rows([gone, *questions()[:3]]), built)
    assert len(embedded(html)) == 1 and chips(html, " visual") == ["▦ 64 visual tokens"]
    html = write(tmp_path, make_rows(questions()[-1:]), built)
    assert "This row holds no image." in html and "stands in for an image" in html


def test_augmentation_is_told(tmp_path: Path, make_rows: MakeRows, built: dict[str, Built]) -> None:
    assert "augmented" in write(tmp_path, make_rows(questions(), augment=0.1), built)
    assert "augmented" not in write(tmp_path, make_rows(questions()), built)


def test_rows_of_a_merged_map_are_told_together(tmp_path: Path, built: dict[str, Built]) -> None:
    tables = {"view": {"name": "anyres"}, "connector": {"name": "concat"}}
    anyres = build(run_config_from_dict(tables), [text for q in QUESTIONS for text in (q, *COLOURS)])
    turns = (Turn("user", (0, 1, "\nis it red?")), Turn("assistant", ("yes",)))
    samples = [Sample("two", turns, (picture("red", (120, 80)), picture("blue", (100, 100))))]
    plan = Plan([Lengths(samples, anyres.composer)], (), BatchConfig(), seed=0)
    rows = Rows([samples], plan, anyres.composer)
    html = write(tmp_path, rows, {"inline": anyres})
    wide, square = "▦ 6 × 8 visual tokens, &lt;image_newline&gt;", "▦ 8 × 8 visual tokens, &lt;image_newline&gt;"
    assert chips(html, " visual") == ["▦ 16 visual tokens", wide, "▦ 16 visual tokens", square]
    assert "→ 64 visual tokens" in html and "→ 80 visual tokens" in html
    assert re.findall(r"<text.*?>(.*?)</text>", html) == [
        "0/0,0", "1/0,0", "1/0,1", "1/1,0", "1/1,1",
    ] * 2  # fmt: skip
    batch = rows[(0, 0, 0)]
    shown = show_batch(batch, anyres.tokenizer, anyres.composer.image_token)
    assert "<image ×24><image_newline>5×(<image ×8><image_newline>)<image ×24><image_newline>7×(" in shown
    newline = newline_id(anyres.tokenizer)
    segments = segment_tokens(batch, anyres.composer.image_token, newline=newline)
    assert [id for segment in segments for token in segment.tokens for id in token.ids] == batch.ids_T.tolist()
    assert newline_id(built["inline"].tokenizer) is None


def test_segments_say_what_is_said_of_their_source(
    tmp_path: Path, make_rows: MakeRows, built: dict[str, Built]
) -> None:
    *seen, text = questions()
    samples = [dataclasses.replace(sample, template="plain", loss_weight=0.25) for sample in seen[:3]]
    html = write(tmp_path, make_rows([*samples, dataclasses.replace(text, loss_weight=2.0)]), built)
    said = "(template plain, loss weight 0.25)"
    assert re.findall(r'class="tag">(.*?)</span>', html)[1:] == [
        "0", f"1 ⟵ 0 {said}", f"2 ⟵ 0 {said}", f"3 ⟵ 0 {said}", "4 (loss weight 2)",
    ]  # fmt: skip
