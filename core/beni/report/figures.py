"""Numbers as people read them; what is missing becomes an en dash."""

import math
from collections.abc import Sequence

MISSING = "–"


def hundredfold(value: float | None, unit: str = "") -> str:
    """0.934 as `93.4`, and a unit behind it."""
    return MISSING if value is None else f"{100 * value:.1f}{unit}"


def bounds(interval: Sequence[float] | None) -> str:
    """(0.9, 0.95) as `90.0 – 95.0`."""
    return MISSING if interval is None else " – ".join(map(hundredfold, interval))


def percent(share: float | None) -> str:
    """0.934 as `93.4 %`."""
    return hundredfold(share, " %")


def whole(value: float | None) -> str:
    """1234.5 as `1,234` (grouped, rounded)."""
    return MISSING if value is None else f"{value:,.0f}"


def decimal(value: float | None) -> str:
    """Four significant digits, grouped: 0.34567 as `0.3457`, 45678.9 as `45,679`."""
    if value is None:
        return MISSING
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "∞"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def quantity(count: float | None) -> str:
    """A large count: 1234567 as `1.23 M`."""
    if count is None:
        return MISSING
    for scale, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= scale:
            return f"{_three(count / scale)} {unit}"
    return f"{count:,.0f}"


def operations(count: float | None) -> str:
    """Floating point operations: 85823423 as `85.8 M`, 1.35e10 as `13.5 G`."""
    if count is None:
        return MISSING
    for power, prefix in ((5, "P"), (4, "T"), (3, "G"), (2, "M"), (1, "k")):
        if count >= 1000**power:
            return f"{_three(count / 1000**power)} {prefix}"
    return f"{count:,.0f} "


def size(count: float | None) -> str:
    """Bytes: 3221225472 as `3.00 GiB`."""
    if count is None:
        return MISSING
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if count >= 1024**power:
            return f"{_three(count / 1024**power)} {unit}"
    return f"{count:.0f} B"


def _three(value: float) -> str:
    """At least three significant digits of a number ≥ 1, never in powers of ten."""
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"


def duration(seconds: float | None) -> str:
    """Seconds: 3725 as `1 h 02 min`."""
    if seconds is None:
        return MISSING
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


ALL = (percent, hundredfold, bounds, whole, decimal, quantity, operations, size, duration)
"""What templates may use by name."""
