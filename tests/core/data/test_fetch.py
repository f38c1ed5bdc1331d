"""Images behind URLs: downloaded once, whole or not at all, tried again only where that helps."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from beni.data import images
from beni.data.images import image_size, load_image
from beni.errors import ImageError
from beni.sample import ImageRef
from tests.conftest import MakePicture

Answer = Callable[[BaseHTTPRequestHandler, bytes, int], None]


def ok(handler: BaseHTTPRequestHandler, png: bytes, times: int) -> None:
    send(handler, 200, png)


def missing(handler: BaseHTTPRequestHandler, png: bytes, times: int) -> None:
    send(handler, 404, b"gone")


def failing(handler: BaseHTTPRequestHandler, png: bytes, times: int) -> None:
    send(handler, 500, b"later")


def recovering(handler: BaseHTTPRequestHandler, png: bytes, times: int) -> None:
    send(handler, 200 if times == 3 else 429, png)


def page(handler: BaseHTTPRequestHandler, png: bytes, times: int) -> None:
    if times == 1:
        send(handler, 200, b"<html>log in first</html>", kind="text/html")
    else:
        send(handler, 200, png)


def reset(handler: BaseHTTPRequestHandler, png: bytes, times: int) -> None:
    handler.connection.close()


def short(handler: BaseHTTPRequestHandler, png: bytes, times: int) -> None:
    send(handler, 200, png[:-9], length=len(png))


def cut(handler: BaseHTTPRequestHandler, png: bytes, times: int) -> None:
    """Half of the picture at first, without a length that would tell."""
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(png[: len(png) // 2] if times == 1 else png)


def large(handler: BaseHTTPRequestHandler, png: bytes, times: int) -> None:
    send(handler, 200, png + b"\0" * 5000)


def send(handler: BaseHTTPRequestHandler, status: int, body: bytes, kind: str = "image/png", length: int = 0) -> None:
    handler.send_response(status)
    handler.send_header("Content-Type", kind)
    handler.send_header("Content-Length", str(length or len(body)))
    handler.end_headers()
    handler.wfile.write(body)


ANSWERS: dict[str, Answer] = {
    f"/{answer.__name__}": answer for answer in (ok, missing, failing, recovering, page, reset, short, cut, large)
}


class Server:
    """A server on this machine, and how often each path was asked for."""

    def __init__(self, png: bytes) -> None:
        self.asked: Counter[str] = Counter()
        counts = self.asked

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                counts[self.path] += 1
                ANSWERS[self.path](self, png, counts[self.path])

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def ref(self, name: str) -> ImageRef:
        return ImageRef(url=f"http://127.0.0.1:{self.http.server_port}/{name}")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, picture: MakePicture) -> Iterator[Server]:
    monkeypatch.setenv("BENI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(images, "RETRY_WAIT_S", 0.0)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    running = Server(picture().data)
    yield running
    running.http.shutdown()
    running.http.server_close()
    running.thread.join()


def kept(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "cache" / "images").iterdir())


def test_an_image_is_asked_for_once(server: Server, tmp_path: Path, picture: MakePicture) -> None:
    ref = server.ref("ok")
    assert image_size(ref) == (24, 16)
    assert load_image(ref).tobytes() == load_image(ref).tobytes() == load_image(picture()).tobytes()
    assert server.asked["/ok"] == 1 and len(kept(tmp_path)) == 1


@pytest.mark.parametrize(
    ("name", "times", "said"),
    [
        ("missing", 1, "404"),
        ("failing", 3, "3 tries.*500"),
        ("reset", 3, "3 tries"),
        ("short", 3, "3 tries"),
        ("page", 1, "text/html.*not in any image format"),
    ],
)
def test_failures_name_the_url_and_leave_nothing(
    server: Server, tmp_path: Path, name: str, times: int, said: str
) -> None:
    ref = server.ref(name)
    with pytest.raises(ImageError, match=said) as caught:
        load_image(ref)
    assert ref.url in str(caught.value) and "\n" not in str(caught.value)
    assert server.asked[f"/{name}"] == times and kept(tmp_path) == []


def test_a_busy_server_is_asked_again(server: Server) -> None:
    assert load_image(server.ref("recovering")).size == (24, 16)
    assert server.asked["/recovering"] == 3


def test_a_page_in_place_of_an_image_does_not_stay(server: Server) -> None:
    with pytest.raises(ImageError):
        load_image(server.ref("page"))
    assert load_image(server.ref("page")).size == (24, 16)


def test_a_damaged_download_does_not_stay(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="damaged"):
        load_image(server.ref("cut"))
    assert kept(tmp_path) == []
    assert load_image(server.ref("cut")).size == (24, 16)


def test_a_body_beyond_the_limit_is_refused(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_BYTES", 3000)
    with pytest.raises(ImageError, match="larger than 3,000 bytes"):
        load_image(server.ref("large"))
    assert server.asked["/large"] == 1 and kept(tmp_path) == []


def test_a_url_that_cannot_be_asked_for_fails_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images.time, "sleep", lambda seconds: pytest.fail("waited"))
    with pytest.raises(ImageError, match="cannot be fetched"):
        load_image(ImageRef(url="http://"))
