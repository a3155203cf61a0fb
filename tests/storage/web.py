"""A web server on loopback for tests: files by path, redirects, statuses, a body that breaks off or
stalls.
"""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.storage.loopback import Loopback


class Web(Loopback):
    """The server: `files` by "/path"; `faults` by path: a status, "short", "stall", "drip" or a URL
    to redirect to.

    A fault that is a list is used up from its front, and then the file comes. Use it as a context
    manager.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files, self.faults, self.seen = files, dict[str, Any](), list[str]()
        super().__init__(_Handler)

    def url(self, path: str) -> str:
        return f"{self.address}{path}"


class _Handler(BaseHTTPRequestHandler):
    server: Any

    def do_GET(self) -> None:
        web, path = self.server.owner, self.path.partition("?")[0]
        web.seen.append(self.path)
        fault = web.faults.get(path)
        if isinstance(fault, list):
            fault = fault.pop(0) if fault else None
        if fault is not None and "://" in str(fault):
            self.send_response(302)
            self.send_header("Location", str(fault))
            self.end_headers()
        elif isinstance(fault, int):
            self.send_error(fault)
        elif path not in web.files:
            self.send_error(404)
        else:
            self._send(web.files[path], str(fault))

    def _send(self, content: bytes, fault: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        try:
            self.wfile.write(content if fault == "None" else content[: len(content) // 2])
            if fault == "stall":
                self.server.owner.closing.wait(30)
            while fault == "drip" and not self.server.owner.closing.wait(0.05):
                self.wfile.write(b"\0")
        except OSError:  # the reader has had enough
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass
