"""Images behind URLs: downloaded once, whole or not at all, tried again only where that helps."""

import json
import select
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from beni.data import fetch
from beni.data.images import image_size, load_image
from beni.errors import ImageError
from beni.sample import ImageRef
from beni.training.run import train
from tests.conftest import MakePicture
from tests.core.data.test_images import claims
from tests.training.small import small_run

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


def silent(handler: BaseHTTPRequestHandler, png: bytes, times: int) -> None:
    """Takes the question and says nothing, until the other side has left."""
    handler.connection.recv(1)


def dripping(handler: BaseHTTPRequestHandler, png: bytes, times: int) -> None:
    """A header that never ends: every byte comes in time."""
    handler.wfile.write(b"HTTP/1.0 200 OK\r\nX: ")
    _until_left(handler, b"x")


def trickling(handler: BaseHTTPRequestHandler, png: bytes, times: int) -> None:
    """A body that never ends, of unknown length."""
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(png)
    _until_left(handler, b"x")


def endless(handler: BaseHTTPRequestHandler, png: bytes, times: int) -> None:
    """As much as the other side takes."""
    handler.send_response(200)
    handler.end_headers()
    with suppress(OSError):
        while True:
            handler.wfile.write(bytes(1 << 16))


def gigabyte(handler: BaseHTTPRequestHandler, png: bytes, times: int) -> None:
    send(handler, 200, png, length=10**9)


def bomb(handler: BaseHTTPRequestHandler, png: bytes, times: int) -> None:
    send(handler, 200, claims(50_000, 50_000))


def away(handler: BaseHTTPRequestHandler, png: bytes, times: int) -> None:
    """To the same server, under another address of this machine."""
    handler.send_response(302)
    handler.send_header("Location", f"http://127.0.0.2:{handler.server.server_address[1]}/ok")
    handler.end_headers()


def _until_left(handler: BaseHTTPRequestHandler, data: bytes) -> None:
    with suppress(OSError):
        while not select.select([handler.connection], [], [], 0.05)[0]:
            handler.wfile.write(data)


def send(handler: BaseHTTPRequestHandler, status: int, body: bytes, kind: str = "image/png", length: int = 0) -> None:
    handler.send_response(status)
    handler.send_header("Content-Type", kind)
    handler.send_header("Content-Length", str(length or len(body)))
    handler.end_headers()
    handler.wfile.write(body)


ANSWERS: dict[str, Answer] = {
    f"/{answer.__name__}": answer
    for answer in (
        *(ok, missing, failing, recovering, page, reset, short, cut, large),
        *(silent, dripping, trickling, endless, gigabyte, bomb, away),
    )
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

        self.http = ThreadingHTTPServer(("0.0.0.0", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def ref(self, name: str) -> ImageRef:
        return ImageRef(url=f"http://127.0.0.1:{self.http.server_port}/{name}")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, picture: MakePicture) -> Iterator[Server]:
    monkeypatch.setenv("BENI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetch, "RETRY_WAIT_S", 0.0)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv(fetch.PRIVATE, "1")
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
    monkeypatch.setattr(fetch, "MAX_BYTES", 3000)
    with pytest.raises(ImageError, match="larger than 3,000 bytes"):
        load_image(server.ref("large"))
    assert server.asked["/large"] == 1 and kept(tmp_path) == []


def test_a_url_that_cannot_be_asked_for_fails_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch.time, "sleep", lambda seconds: pytest.fail("waited"))
    with pytest.raises(ImageError, match="cannot be fetched"):
        load_image(ImageRef(url="http://"))


def test_a_body_that_says_it_is_too_large_is_not_read(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="larger than 64,000,000 bytes"):
        load_image(server.ref("gigabyte"))
    assert kept(tmp_path) == []


def test_endless_data_is_cut_off(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "MAX_BYTES", 1_000_000)
    with pytest.raises(ImageError, match="larger than 1,000,000 bytes"):
        load_image(server.ref("endless"))
    assert server.asked["/endless"] == 1 and kept(tmp_path) == []


def test_a_silent_server_is_asked_again_and_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "SILENCE_S", 0.1)
    with pytest.raises(ImageError, match=r"3 tries.*timed out"):
        load_image(server.ref("silent"))
    assert server.asked["/silent"] == 3


@pytest.mark.parametrize("name", ["dripping", "trickling"])
def test_a_server_that_never_ends_is_cut_off(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Though it never is silent for long, and what it sent so far is a picture."""
    monkeypatch.setattr(fetch, "TOTAL_S", 0.5)
    with pytest.raises(ImageError, match=r"not complete after 0\.5 s"):
        load_image(server.ref(name))
    assert server.asked[f"/{name}"] == 1 and kept(tmp_path) == []


def test_private_addresses_are_refused_unless_allowed(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(fetch.PRIVATE)
    for host in ("127.0.0.1", "localhost", "[::ffff:127.0.0.1]"):
        ref = ImageRef(url=f"http://{host}:{server.http.server_port}/ok")
        with pytest.raises(
            ImageError, match=r"has the address 127\.0\.0\.1, which is not public.*BENI_PRIVATE_URLS=1"
        ) as caught:
            load_image(ref)
        assert ref.url in str(caught.value)
    assert not server.asked, "nothing may be asked of it"


def test_a_redirect_does_not_lead_into_this_network(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    original = fetch._refuse_private
    monkeypatch.setattr(
        fetch, "_refuse_private", lambda host, address: None if address == "127.0.0.1" else original(host, address)
    )
    assert load_image(server.ref("away")).size == (24, 16)
    (next(fetch.cache_dir().glob("images/*"))).unlink()
    monkeypatch.delenv(fetch.PRIVATE)
    with pytest.raises(ImageError, match=r"127\.0\.0\.2 has the address 127\.0\.0\.2, which is not public"):
        load_image(server.ref("away"))
    assert (server.asked["/away"], server.asked["/ok"]) == (2, 1)


@pytest.mark.parametrize(
    "address", ["10.0.0.1", "192.168.1.1", "169.254.169.254", "172.16.0.1", "0.0.0.0", "::1", "fe80::1%eth0", "fc00::1"]
)
def test_what_is_private(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(fetch.PRIVATE, raising=False)
    with pytest.raises(fetch._PrivateAddress, match="not public"):
        fetch._refuse_private("host", address)
    for public in ("8.8.8.8", "2606:4700:4700::1111"):
        fetch._refuse_private("host", public)


REASONS = {
    "missing": "404",
    "failing": "500",
    "page": "text/html",
    "reset": "3 tries",
    "silent": "timed out",
    "trickling": "not complete after",
    "endless": "is larger than",
    "bomb": "more than the 64,000,000 pixels",
}


def test_each_is_a_bad_sample_of_a_run_with_its_reason(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"SILENCE_S": 0.1, "TOTAL_S": 1.0, "MAX_BYTES": 100_000}.items():
        monkeypatch.setattr(fetch, name, value)
    talk = [{"from": "human", "value": "<image>what?"}, {"from": "gpt", "value": "noise"}]
    items = [{"id": name, "image": server.ref(name).url, "conversations": talk} for name in ("ok", *REASONS)]
    (tmp_path / "a.json").write_text(json.dumps(items))
    data = {"data": [f"llava:{tmp_path / 'a.json'}"], "eval_data": ["shapes?images=10"]}
    result = train(small_run(tmp_path / "run", data=data, optim={"steps": 1}))
    told = {entry["id"]: entry["reason"] for entry in result["skipped"]}
    assert told.keys() == REASONS.keys() and result["skipped_samples"] == len(REASONS)
    for name, reason in REASONS.items():
        assert reason in told[name] and server.ref(name).url in told[name]
