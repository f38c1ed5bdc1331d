"""Links between the files of the repository lead somewhere, and every page is found from the README."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pages.blocks import PAGES, ROOT

MARKDOWN = (*PAGES, ROOT / "CHANGELOG.md")
CODE = re.compile(r"^```.*?^```$|`[^`\n]*`", re.DOTALL | re.MULTILINE)
LINK = re.compile(
    r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)|<(?:img|source|a)\b[^>]*?\b(?:src|srcset|href)=\"([^\"]+)\""
)
HEADING = re.compile(r"^#{1,6} +(.+?) *#* *$", re.MULTILINE)
ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:")


def links(text: str) -> list[str]:
    """Targets inside the repository; code shows links, and has none."""
    found = [first or second for first, second in LINK.findall(CODE.sub("", text))]
    return [target for target in found if not ELSEWHERE.match(target)]


def anchors(text: str) -> set[str]:
    """What GitHub calls the headings of a page: lower case, no punctuation, a number behind what is there already."""
    found: set[str] = set()
    for heading in HEADING.findall(re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        again = (f"{slug}-{number}" for number in range(1, len(found) + 1))
        found.add(slug if slug not in found else next(name for name in again if name not in found))
    return found


def broken(page: Path) -> Iterator[str]:
    """Links of a page that lead nowhere."""
    for target in links(page.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        there = file.exists() and file.is_relative_to(ROOT)
        if there and anchor:
            there = file.suffix == ".md" and anchor in anchors(file.read_text(encoding="utf-8"))
        if not there:
            yield target


@pytest.mark.parametrize("page", [pytest.param(page, id=page.name) for page in MARKDOWN])
def test_links_lead_somewhere(page: Path) -> None:
    assert list(broken(page)) == []


def test_every_page_is_in_the_table_of_the_readme() -> None:
    named = {(ROOT / target.partition("#")[0]).resolve() for target in links((ROOT / "README.md").read_text("utf-8"))}
    assert [page.name for page in PAGES[1:] if page.resolve() not in named] == []


def test_pages_named_in_the_code_exist() -> None:
    files = [file for folder in ("core", "plugins", "benchmarks", "experiments") for file in (ROOT / folder).rglob("*")]
    code = [file for file in files if file.suffix in {".py", ".sh", ".toml", ".jinja"}]
    named = {(file.name, page) for file in code for page in re.findall(r"\bdocs/[\w-]+\.md\b", file.read_text("utf-8"))}
    assert named and {pair for pair in named if not (ROOT / pair[1]).exists()} == set()


def test_a_broken_link_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.pages.test_links.ROOT", tmp_path)
    (tmp_path / "b.md").write_text("# Ein *Titel*: `a/b`, zwei\n\n# Same\n\n```\n# No heading\n```\n\n# Same\n")
    page = tmp_path / "a.md"
    good = "[x](b.md) [x](b.md#ein-titel-ab-zwei) [x](b.md#same-1) [x](https://example.org/nothing) `[x](c.md)`\n"
    page.write_text(f'{good}[x](c.md) [x](b.md#same-2) [x](b.md#no-heading) ![x](x.svg) <img src="y.svg">\n')
    assert list(broken(page)) == ["c.md", "b.md#same-2", "b.md#no-heading", "x.svg", "y.svg"]
