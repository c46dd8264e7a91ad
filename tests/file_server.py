"""A local HTTP server that misbehaves on request, for the tests of downloads."""

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FileServer(ThreadingHTTPServer):
    """Serves `content` at every address, but `files` by the last part of an address; an address
    that ends in "missing" gives 404, one that ends in "moved" a redirection.

    Each GET takes the first of `faults`, if any are left; "" is none:
    "cut:N" closes the connection after N bytes, "stall:N" falls silent after N bytes, "hold:N" too
    but sends the rest once `go_on` is set, "trickle" sends ten pieces with pauses, an HTTP status
    refuses.
    """

    daemon_threads = True

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content = content
        self.files: dict[str, bytes] = {}
        self.missing: set[str] = set()
        """Last parts of addresses that give 404 to a HEAD."""
        self.faults: list[str] = []
        self.ranges = True
        self.tell_length = True
        self.status: int | None = None
        """In the place of 200 and 206."""
        self.moved_to = "/found"
        self.headers: dict[str, str] = {}
        """Headers in the place of the server's own."""
        self.moved_headers: dict[str, str] = {}
        """Headers of redirections alone."""
        self.asked: list[str] = []
        """The address of each HEAD so far."""
        self.requested: list[str] = []
        """The Range header of each GET so far, "" without one."""
        self.encodings: list[str] = []
        """The Accept-Encoding header of each GET so far, "" without one."""
        self.silent = threading.Event()
        """Set once a handler has fallen silent."""
        self.go_on = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def content_at(self, path: str) -> bytes:
        """The content of an address."""
        return self.files.get(path.rpartition("/")[2], self.content)

    def stop(self) -> None:
        """Refuse all further connections."""
        self.go_on.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """Quiet: clients that disconnect early are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    server: FileServer

    def log_message(self, *args: object) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self.server.asked.append(self.path)
        moved = self.path.endswith("moved")
        missing = self.path.rpartition("/")[2] in self.server.missing
        status = 302 if moved else 404 if missing else 200
        self._headers(status, len(self.server.content_at(self.path)))

    def do_GET(self) -> None:
        server = self.server
        wanted = self.headers.get("Range", "")
        server.requested.append(wanted)
        server.encodings.append(self.headers.get("Accept-Encoding", ""))
        fault, _, number = (server.faults.pop(0) if server.faults else "").partition(":")
        if fault.isdigit() or self.path.endswith("missing"):
            self._headers(int(fault or 404), 0)
            return
        if self.path.endswith("moved"):
            self._headers(302, 0)
            return
        content, asked = server.content_at(self.path), wanted and server.ranges
        begin, _, last = wanted.removeprefix("bytes=").partition("-") if asked else ("0", "", "")
        start = int(begin)
        body = content[start : int(last) + 1 if last else None]
        self._headers(server.status or (206 if asked else 200), len(body), start)
        first = body[: int(number)] if number else body
        if fault == "trickle":
            self._trickle(body)
            return
        self.wfile.write(first)
        self.wfile.flush()
        if fault in ("stall", "hold"):
            server.silent.set()
            server.go_on.wait(30)
        if fault == "hold":
            self.wfile.write(body[len(first) :])

    def _trickle(self, body: bytes) -> None:
        step = len(body) // 10 + 1
        for begin in range(0, len(body), step):
            self.wfile.write(body[begin : begin + step])
            self.wfile.flush()
            time.sleep(0.05)

    def _headers(self, status: int, length: int, start: int = 0) -> None:
        content = self.server.content_at(self.path)
        self.send_response(status)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        if self.server.tell_length and "Content-Length" not in self.server.headers:
            self.send_header("Content-Length", str(length))
        if status // 100 == 3:
            self.send_header("Location", self.server.moved_to)
            for name, value in self.server.moved_headers.items():
                self.send_header(name, value)
        if status == 206 and "Content-Range" not in self.server.headers:
            end = start + length - 1
            self.send_header("Content-Range", f"bytes {start}-{end}/{len(content)}")
        # As the Hugging Face hub answers: the commit, and the file's SHA-256 as its ETag.
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.end_headers()


@contextmanager
def serve(content: bytes) -> Iterator[FileServer]:
    """Run a server in a thread."""
    server = FileServer(content)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join()
