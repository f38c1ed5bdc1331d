"""The parts of a run as rows of a table."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

KINDS = ("connector", "fusion", "view", "llm")
WEIGHTLESS = ("view",)


@dataclass(frozen=True, slots=True)
class PartRow:
    """One part: what it is, its options, its parameters."""

    label: str
    """`encoder.main`, `connector`, …"""
    kind: str
    name: str
    """`perceiver`, `timm:vit_base_patch16_siglip_224`, …"""
    options: tuple[tuple[str, str], ...]
    origin: str
    """Distribution and version that brought it."""
    parameters: int | None
    share: float
    """Of all parameters, 0 to 1."""


def parts_of(config: Mapping[str, Any], counts: Mapping[str, int]) -> list[PartRow]:
    """Rows in the order in which data flows.

    Args:
        config: `RunConfig.to_dict()`; a table that is missing has no row.
        counts: parameters per part, empty if unknown; parts that no table describes (`new_tokens`) come last.
    """
    total = sum(counts.values())
    tables = {f"encoder.{key}": ("encoder", table) for key, table in (config.get("encoders") or {}).items()}
    tables |= {kind: (kind, config[kind]) for kind in KINDS if config.get(kind)}

    def row(label: str, kind: str, table: Mapping[str, Any]) -> PartRow:
        options = {key: value for key, value in table.items() if key not in ("name", "origin")}
        model = options.pop("model", None)
        name = f"{table.get('name', '')}:{model}" if model else str(table.get("name", ""))
        origin = table.get("origin") or {}
        count = counts.get(label, 0) if counts and kind not in WEIGHTLESS else None
        return PartRow(
            label,
            kind,
            name,
            tuple(_plain(options)),
            f"{origin.get('distribution', '')} {origin.get('version', '')}".strip(),
            count,
            (count or 0) / total if total else 0.0,
        )

    rows = [row(label, kind, table) for label, (kind, table) in tables.items()]
    return rows + [row(label, label, {}) for label in counts if label not in tables]


def _plain(options: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Options as text, but for empty ones; a part that is held, by its name, and its options as inner.OPTION."""
    for key, value in options.items():
        if isinstance(value, Mapping) and "name" in value:
            yield f"{prefix}{key}", str(value["name"])
            own = {name: entry for name, entry in value.items() if name not in ("name", "origin")}
            yield from _plain(own, f"{prefix}{key}.")
        elif value not in ("", None, [], (), {}):
            yield f"{prefix}{key}", ", ".join(map(str, value)) if isinstance(value, list) else str(value)
