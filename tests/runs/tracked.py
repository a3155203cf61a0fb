"""A W&B server that is not well: it answers everything with a fault, or does so once a run has
begun. For tests.
"""

import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import urlsplit

from tests.storage.loopback import Loopback

PROJECT = {"id": "p", "name": "udl-dist", "entity": {"id": "e", "name": "me"}}
BUCKET = {
    "id": "b",
    "name": "b",
    "displayName": "b",
    "config": "{}",
    "sweepName": None,
    "project": PROJECT,
    "historyLineCount": 0,
}
VIEWER = {"id": "me", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}
STARTED = {
    "viewer": VIEWER,
    "upsertBucket": {"bucket": BUCKET, "inserted": True},
    "serverInfo": {"features": []},
    "model": {"bucket": None},
    "project": PROJECT,
}


@contextmanager
def unwell(
    status: int = 500,
    stall_seconds: float = 0.0,
    starts: bool = False,
    heard: list[bytes] | None = None,
    below: str = "",
) -> Iterator[tuple[str, list[str]]]:
    """Its address and the requests it has had; each is answered with `status` after
    `stall_seconds`.

    With `starts` it lets a run begin, and falls ill then. `heard` gets all of each request but its
    Authorization. With `below` it is a server of other things too, whose W&B is below that path. It
    stands in for a proxy as well.
    """
    asked: list[str] = []
    stays_well = status == 200 and not stall_seconds
    files = (
        {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": []}} if stays_well else {}
    )

    class Handler(BaseHTTPRequestHandler):
        server: Any

        def do_GET(self) -> None:
            self.answer(b"")

        def do_POST(self) -> None:
            self.answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

        def answer(self, question: bytes) -> None:
            asked.append(self.path)
            if heard is not None:
                zipped = self.headers.get("Content-Encoding") == "gzip"
                del self.headers["Authorization"]
                reported = f"{self.path}\n{self.headers}".encode()
                heard.append(reported + (gzip.decompress(question) if zipped else question))
            path = urlsplit(self.path).path
            well = starts and path == f"{below}/graphql"
            if not well:
                self.server.owner.closing.wait(stall_seconds)
            body = json.dumps(
                {"data": STARTED | files} if well else {"errors": [{"message": "not well"}]}
            ).encode()
            self.send_response(200 if well else status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with Loopback(Handler) as server:
        yield server.address, asked
