"""The SDK's client with connections that another thread can cut, for a daemon that has stopped answering."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import docker
from docker.transport import UnixHTTPAdapter
from docker.transport.unixconn import UnixHTTPConnection, UnixHTTPConnectionPool

EARLIEST_API: Final = "1.41"  # Docker 20.10, until the daemon has told its own version


class Client(docker.APIClient):
    """For one thread at a time. `within` seconds is how long each wait for the daemon may last."""

    def __init__(self, host: str) -> None:
        super().__init__(base_url=host, version=EARLIEST_API)
        self.trust_env = False  # no proxy lies between us and the daemon
        self.is_cut = False
        self._is_negotiated = False
        self._sockets: list[socket.socket] = []
        if host.startswith("unix://"):
            self.mount("http+docker://", _Adapter(self, host.removeprefix("unix://")))

    def prepare(self, within: float) -> None:
        """To be called before each use; speaks the daemon's own version from then on."""
        self.timeout = within  # type: ignore[assignment]  # fractions are taken too
        if not self._is_negotiated:
            self._version = str(self.version(api_version=False)["ApiVersion"])
            self._is_negotiated = True

    def connected(self, sock: socket.socket) -> None:
        """Told by a new connection. It replaces the older one, for one thread needs no more than one."""
        self._sockets = [sock]
        if self.is_cut:
            self.cut()

    def cut(self) -> None:
        """From any thread: whoever waits for the daemon on this client waits no longer."""
        self.is_cut = True
        for sock in self._sockets:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


class Attempt:
    """What ties one wait to the client that its thread uses, so that whoever gives up can end both."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._client: Client | None = None
        self._is_over = False

    @contextmanager
    def using(self, client: Client) -> Iterator[None]:
        """In the thread: within this block, and no longer, the client can be cut."""
        with self._guard:
            self._client = client
            if self._is_over:
                client.cut()
        try:
            yield
        finally:
            with self._guard:
                self._client = None

    def end(self) -> None:
        """Nobody waits any more."""
        with self._guard:
            self._is_over = True
            if self._client is not None:
                self._client.cut()


class _Connection(UnixHTTPConnection):
    def __init__(self, client: Client, base_url: str, path: str) -> None:
        super().__init__(base_url, path)
        self._client = client

    def connect(self) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(self.timeout)
            sock.connect(self.unix_socket)
        except BaseException:
            sock.close()
            raise
        self.sock = sock
        self._client.connected(sock)


class _Pool(UnixHTTPConnectionPool):
    def __init__(self, client: Client, base_url: str, path: str) -> None:
        super().__init__(base_url, path, maxsize=1)
        self._client = client

    def _new_conn(self) -> _Connection:  # type: ignore[override]  # the stubs know of no class of one's own
        return _Connection(self._client, self.base_url, self.socket_path)


class _Adapter(UnixHTTPAdapter):
    def __init__(self, client: Client, path: str) -> None:
        super().__init__(f"http+unix://{path}", pool_connections=1, max_pool_size=1)
        self._client = client

    def get_connection(self, url: bytes | str, proxies: Any = None) -> UnixHTTPConnectionPool:
        with self.pools.lock:
            pool = self.pools.get(url)
            if pool is None:
                pool = self.pools[url] = _Pool(self._client, str(url), self.socket_path)
        return pool
