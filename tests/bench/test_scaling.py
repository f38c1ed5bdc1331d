"""How the time of a step grows: the rows hold what they should, and lines are drawn through what was measured."""

from pathlib import Path

import pytest

from beni.bench import scaling
from beni.bench.scaling import Curve, Point, _row_of, curves
from tests.model.small import make
from tests.training.small import ENCODER, XATTN, small_run


def test_a_power_has_its_exponent() -> None:
    quadratic = Curve("x", tuple(Point(n, 3e-3 * n**2, 1e6 * n) for n in (1, 2, 4, 8)))
    assert quadratic.exponent == pytest.approx(2) and quadratic.off > 0.2
    straight = Curve("x", tuple(Point(n, 0.1 + 2e-9 * 1e6 * n, 1e6 * n) for n in (1, 2, 4, 8)))
    assert straight.off == pytest.approx(0, abs=1e-9)
    assert straight.predicted == pytest.approx([p.seconds for p in straight.points])
    assert straight.exponent < 1, "what every step costs makes it flatter"


@pytest.mark.parametrize("parts", ["inline", "xattn"])
def test_rows_hold_so_much(parts: str) -> None:
    composer = make(parts, batch={"row_tokens": 512}).composer
    text = _row_of(documents=4, length=64)(composer)
    assert text.stats.tokens == 4 * 64 and text.stats.samples == 4 and text.stats.images == 0
    assert len(text.segments) == 5, "and the blank image that every row has"
    pictured = _row_of(documents=3, images=2, length=64)(composer)
    assert pictured.stats.images == 6 and len(pictured.visual.layouts) == 6, "each has pictures of its own"
    long = _row_of(length=1024)(composer)
    assert long.stats.tokens == 1024, "longer than a row of the run may be"


def test_a_model_is_measured_in_everything_that_applies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "WARMUP", 1)
    monkeypatch.setattr(scaling, "TIMED", 2)
    found = {curve.of: curve for curve in curves(small_run(tmp_path / "run", **XATTN))}
    assert found.keys() == {"documents", "images", "positions of a text", "image side", "latents"}
    assert [point.amount for point in found["image side"].points] == [8, 16, 24, 32]
    for curve in found.values():
        flops = [point.flops for point in curve.points]
        assert flops == sorted(flops) and len(set(flops)) == len(flops), curve.of
        assert all(point.seconds > 0 for point in curve.points)
    documents = [point.flops for point in found["documents"].points]
    assert documents == pytest.approx([documents[0] * n for n in (1, 2, 4, 8, 16)])


def test_what_a_connector_refuses_is_left_out(tmp_path: Path) -> None:
    config = small_run(tmp_path / "run", connector={"name": "concat"}, encoders={"main": ENCODER | {"size": 12}})
    sizes = [side for side, _ in scaling._sizes(config)]
    with scaling.processes(config.run) as procs:
        measured = [side for side, each in scaling._sizes(config) for _ in scaling._variant(each, procs, side)]
    assert sizes == [12, 24] and measured == [24]
    assert not scaling._latents(config)
