"""Three reports of the same figures."""

import json
from pathlib import Path
from typing import Any

from beni.bench.page import Refused, markdown, terminal, varying, write_reports
from tests.report.pages import Page

ROW: dict[str, Any] = {
    "encoder": "tiny",
    "connector": "mlp",
    "fusion": "inline",
    "llm": "tiny",
    "view": "single",
    "samples_per_s": 1234.5,
    "samples_per_s_quartiles": [1200.0, 1250.0],
    "images_per_s": 123.4,
    "positions_per_s": 20_000.0,
    "step_s": 0.125,
    "step_split": {"data wait": 0.01, "encode": 0.2, "backward": 0.6, "rest": 0.19, "communication": 0.05},
    "flops_per_sample": 8.5e7,
    "flops_per_sample_by_part": {
        "encoder.main": {"forward": 3e7, "backward": 0.0},
        "llm": {"forward": 2e7, "backward": 3.5e7},
    },
    "flops_per_s": 1.05e11,
    "mfu": 0.421,
    "mfu_causal": 0.4,
    "hfu": 0.45,
    "peak": {"flops_per_s": 2.5e11, "precision": "fp32", "source": "measured"},
    "regime": "compute",
    "regime_why": "bound by compute: so it is",
    "peak_memory_bytes": 2**30,
    "visual_tokens_per_image": 64.0,
    "parameters": 1_292_064,
    "trainable_parameters": 1_292_064,
    "estimates_per_sample": {"kaplan": 3e7, "chinchilla": 4e7, "palm": 5e7, "megatron": 6e7},
}
UNKNOWN = ROW | {
    "connector": "perceiver<b>",
    "mfu": None,
    "mfu_causal": None,
    "hfu": None,
    "peak": None,
    "visual_tokens_per_image": None,
    "estimates_per_sample": None,
    "regime": None,
    "regime_why": None,
}
REFUSED = [Refused("--connector sva --fusion inline", "no <grid>")]
MACHINE = {"CPU": "a & b", "cores": 2}


def test_all_reports_hold_the_figures(tmp_path: Path) -> None:
    write_reports(tmp_path, [ROW, UNKNOWN], REFUSED, MACHINE)
    told = json.loads((tmp_path / "report.json").read_text())
    assert told["rows"] == [ROW, UNKNOWN] and told["machine"] == MACHINE
    assert told["refused"] == [{"parts": "--connector sva --fusion inline", "reason": "no <grid>"}]
    html = (tmp_path / "report.html").read_text()
    page = Page(html)
    text = (tmp_path / "report.md").read_text()
    for shown in ("1,234 (1,200 – 1,250)", "42.1 %", "45.0 %", "1.00 GiB", "bound by compute: so it is", "no <grid>"):
        assert shown in text and shown in page.text, shown
    assert "perceiver<b>" in page.text and "perceiver<b>" not in html


def test_only_what_differs_has_a_column() -> None:
    assert varying([ROW, UNKNOWN]) == ["connector"] and varying([ROW]) == ["connector", "fusion"]
    assert markdown([ROW], [], MACHINE).splitlines()[4].startswith("| connector | fusion | samples/s |")


def test_the_terminal_has_every_figure_on_a_line() -> None:
    shown = terminal([ROW, UNKNOWN])
    assert "mlp\n" in shown and "perceiver<b>\n" in shown
    assert "  MFU           42.1 %" in shown and "  MFU           –" in shown
    assert "  step          125 ms: data wait 1%, encode 20%" in shown


def test_nothing_measured_is_a_report_too(tmp_path: Path) -> None:
    write_reports(tmp_path, [], REFUSED, MACHINE)
    assert "no &lt;grid&gt;" in (tmp_path / "report.html").read_text()
