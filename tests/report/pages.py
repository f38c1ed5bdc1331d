"""Written pages, taken apart."""

import base64
import io
from html.parser import HTMLParser

from PIL import Image


class Page(HTMLParser):
    """Tags, attributes and the visible text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def embedded(html: str) -> list[tuple[Image.Image, bool]]:
    """Pictures of a page, and whether their pixels stay visible."""
    found = []
    for attributes in Page(html).all("img"):
        data = (attributes["src"] or "").partition("base64,")[2]
        found.append((Image.open(io.BytesIO(base64.b64decode(data))), "tiny" in (attributes.get("class") or "")))
    return found
