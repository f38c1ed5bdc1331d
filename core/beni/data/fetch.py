"""Files behind URLs: downloaded once, whole or not at all, within a bounded time, and not from the machines around.

A data set is written by somebody else. A URL in it must not make this machine wait for ever, fill its disk, or ask a
server that only this network can reach (`169.254.169.254`, `localhost`, a printer) on behalf of whoever wrote it.
"""

import hashlib
import ipaddress
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError

from beni.errors import ImageError

MAX_BYTES = 64_000_000
"""Largest file that is downloaded."""
SILENCE_S = 15.0
"""How long a server may say nothing."""
TOTAL_S = 60.0
"""How long a file may take, all tries together."""
TRIES = 3
RETRY_WAIT_S = 0.5
"""Wait before the second try; it doubles with every further one."""
RETRIED_STATUS = frozenset({408, 429, *range(500, 600)})
"""HTTP answers that may be better the next time; others are final."""
PRIVATE = "BENI_PRIVATE_URLS"
"""Environment variable that allows addresses which are not public, if it is 1."""


def cache_dir() -> Path:
    """Where downloaded images lie: `$BENI_CACHE`, else `~/.cache/beni`."""
    return Path(os.environ.get("BENI_CACHE", Path.home() / ".cache" / "beni"))


def cached(url: str) -> Path:
    """Where the file of a URL lies, once it is downloaded."""
    return cache_dir() / "images" / hashlib.sha256(url.encode()).hexdigest()


def fetch(url: str, check: Callable[[Path, str], None]) -> Path:
    """Download once, whole or not at all; later calls find the file.

    Args:
        url: http or https.
        check: of a downloaded file and what to call it; raises what is wrong with it, and it is not kept.

    Raises:
        ImageError: not to be had within the limits, or at an address that is not public.
    """
    path = cached(url)
    if path.exists():
        return path
    error: Exception | None = None
    with Deadline(TOTAL_S) as deadline:
        for attempt in range(TRIES):
            if attempt:
                time.sleep(RETRY_WAIT_S * 2 ** (attempt - 1))
            try:
                return _download(url, path, check, deadline)
            except _PrivateAddress as refused:
                raise ImageError(f"image {url} is refused: {refused}") from refused
            except (requests.RequestException, HTTPError, UnicodeError) as failed:
                error = failed
            except OSError as failed:
                raise ImageError(f"image {url} cannot be fetched to {path.parent}: {failed.strerror}") from failed
            if deadline.passed:
                raise ImageError(f"image {url} cannot be fetched: not complete after {TOTAL_S:g} s") from error
            if isinstance(error, requests.HTTPError):
                if error.response is not None and error.response.status_code not in RETRIED_STATUS:
                    break
            elif isinstance(error, ValueError):  # not a URL that can be asked for at all
                break
    tries = f" ({TRIES} tries)" if attempt else ""
    raise ImageError(f"image {url} cannot be fetched{tries}: {error}") from error


def _download(url: str, path: Path, check: Callable[[Path, str], None], deadline: "Deadline") -> Path:
    """Fetch to a temporary file beside `path`; it moves there only when it is whole, and passes the check."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with requests.Session() as session:
        for scheme in ("http://", "https://"):
            session.mount(scheme, _Adapter(deadline))
        with session.get(url, stream=True, timeout=SILENCE_S) as response:
            response.raise_for_status()
            expected = _length(response)
            with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
                draft = Path(file.name)
                try:
                    for chunk in [] if expected > MAX_BYTES else response.iter_content(1 << 16):
                        file.write(chunk)
                        if file.tell() > MAX_BYTES:
                            break
                    if max(expected, file.tell()) > MAX_BYTES:
                        raise ImageError(f"image {url} is larger than {MAX_BYTES:,} bytes")
                    if deadline.passed:  # a connection that was cut may look like the end of the file
                        raise requests.Timeout
                    if expected and not response.headers.get("Content-Encoding") and file.tell() != expected:
                        raise requests.ConnectionError(f"{file.tell()} of {expected} bytes arrived")
                    file.close()
                    kind = response.headers.get("Content-Type", "unknown")
                    check(draft, f"{url} (Content-Type {kind})")
                    draft.replace(path)
                finally:
                    draft.unlink(missing_ok=True)
    return path


def _length(response: requests.Response) -> int:
    """What the server says it will send; 0 if it does not say."""
    said = response.headers.get("Content-Length", "")
    return int(said) if said.isdecimal() else 0


class Deadline:
    """Cuts connections when time is up, whatever they wait for: a time-out of a socket starts anew with every byte."""

    def __init__(self, seconds: float) -> None:
        self.passed = False
        self._lock = threading.Lock()
        self._watched: list[socket.socket] = []
        self._timer = threading.Timer(seconds, self._cut)
        self._timer.daemon = True

    def __enter__(self) -> "Deadline":
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        with self._lock:
            for connection in self._watched:
                connection.close()
            self._watched.clear()

    def watch(self, connection: socket.socket) -> None:
        """Cut this one, too; TLS above it or not."""
        with self._lock:
            self._watched.append(socket.socket(fileno=os.dup(connection.fileno())))
        if self.passed:
            self._cut()

    def _cut(self) -> None:
        with self._lock:
            self.passed = True
            for connection in self._watched:
                with suppress(OSError):  # it has ended by itself
                    connection.shutdown(socket.SHUT_RDWR)


class _PrivateAddress(Exception):
    """A server that is not public."""


def _refuse_private(host: str, address: str) -> None:
    """What is looked at is where the connection has led, so neither a redirect nor a name server can get around it."""
    found = ipaddress.ip_address(address.partition("%")[0])
    found = getattr(found, "ipv4_mapped", None) or found
    if not found.is_global and os.environ.get(PRIVATE) != "1":
        raise _PrivateAddress(
            f"{host} has the address {found}, which is not public: data must not reach into this network, unless "
            f"{PRIVATE}=1 is set in the environment"
        )


class _Watched:
    """A connection that is cut at the deadline, and not used if it leads to a private address."""

    deadline: ClassVar[Deadline]

    def connect(self: Any) -> None:
        super().connect()  # type: ignore[misc]
        if self.proxy is None:  # else it leads to the proxy, which decides what it asks for
            try:
                _refuse_private(self.host, self.sock.getpeername()[0])
            except _PrivateAddress:
                self.close()
                raise
        self.deadline.watch(self.sock)


class _Adapter(HTTPAdapter):
    def __init__(self, deadline: Deadline) -> None:
        self.pools = {}
        for scheme, pool, connection in (
            ("http", HTTPConnectionPool, HTTPConnection),
            ("https", HTTPSConnectionPool, HTTPSConnection),
        ):
            watched = type(f"Watched{connection.__name__}", (_Watched, connection), {"deadline": deadline})
            self.pools[scheme] = type(f"Watched{pool.__name__}", (pool,), {"ConnectionCls": watched})
        super().__init__()

    def init_poolmanager(self, *arguments: Any, **named: Any) -> None:
        super().init_poolmanager(*arguments, **named)
        self.poolmanager.pool_classes_by_scheme = self.pools

    def proxy_manager_for(self, proxy: str, **named: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **named)
        if not proxy.lower().startswith("socks"):  # which has connections of its own kind
            manager.pool_classes_by_scheme = self.pools
        return manager
