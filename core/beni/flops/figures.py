"""Counted operations as the figures that papers and budgets have."""

from collections.abc import Mapping
from typing import Any

from beni.flops.count import Flops


def total(counts: Mapping[str, Flops]) -> Flops:
    """Of all parts."""
    return sum(counts.values(), Flops())


def per_sample(full: Mapping[str, Flops], causal: Mapping[str, Flops], samples: float) -> dict[str, Any]:
    """What a sample costs, with dense and with causal attention, and where.

    Args:
        full, causal: of all samples, by part.
        samples: how many, at least one.
    """
    return {
        "flops_per_sample": total(full).model / samples,
        "flops_per_sample_causal": total(causal).model / samples,
        "flops_per_sample_by_part": {
            part: {"forward": each.forward / samples, "backward": each.backward / samples}
            for part, each in sorted(full.items())
        },
    }


def utilization(
    rate: float, full: Mapping[str, Flops], causal: Mapping[str, Flops], limit: float | None
) -> dict[str, float | None]:
    """How much of what the devices can compute is used.

    MFU is Chowdhery et al. 2022, appendix B; HFU also counts what is computed again. Both have dense attention, and
    `mfu_causal` only what masks leave of it.

    Args:
        rate: model operations per second.
        full, causal: by part; their ratios matter.
        limit: what all devices together can compute in a second; None where nobody knows.
    """
    model = total(full).model
    use = rate / limit if limit else None
    return {
        "flops_per_s": rate,
        "mfu": use,
        "mfu_causal": use and use * total(causal).model / model,
        "hfu": use and use * (total(full).hardware / model),  # so that it is never below the MFU, by rounding
    }
