"""What a run shows of itself: its report, its model's card, a sample of its data, a batch on the terminal."""

from beni.report.card import write_card
from beni.report.choose import choose_shown
from beni.report.page import write_report
from beni.report.sample_page import write_sample
from beni.report.terminal import show_batch

__all__ = ["choose_shown", "show_batch", "write_card", "write_report", "write_sample"]
