"""A server on loopback that speaks enough S3 for a reader (HEAD, ranged GET, PUT, a flat list) and
fails on request.

A fault is a word: a status ("400": credentials that have expired, "403", "404", "503"), "short"
(half of the body, then the end), "reset" (half of it, then a reset), "stall" (half of it, then
nothing until the server closes), "slow" (all of it after 0.6 s), "whole" (all of the object,
whatever range is asked for), "301 URL" and "307 URL" (a redirect). `faults` holds words for the
next requests, one each; `always` one for every request.
"""

import hashlib
import re
import socket
import struct
from collections import deque
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.storage.loopback import Loopback

ERRORS = {
    "400": "ExpiredToken",
    "403": "AccessDenied",
    "404": "NoSuchKey",
    "503": "SlowDown",
    "500": "InternalError",
    "501": "NotImplemented",
}
MESSAGES = {"NotImplemented": "A header you provided implies functionality that is not implemented"}


class Faulty(Loopback):
    """The server: `objects` by "bucket/key"; use it as a context manager."""

    def __init__(self, objects: dict[str, bytes]) -> None:
        self.objects = objects
        self.faults: deque[str] = deque()  # of the GETs to come
        self.signed = ""  # the signature of the last request
        self.put_fault = ""  # of every PUT
        self.always = ""  # of every request, HEAD too
        self.seen: list[str] = []  # "GET bucket/key bytes=0-9"
        super().__init__(_Handler)

    def uri(self, name: str) -> str:
        """The address of an object, with this server as endpoint."""
        return f"s3://{name}?endpoint_override={self.address}"

    def gets(self) -> int:
        return sum(line.startswith("GET") for line in self.seen)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.server.owner.put_fault:
            return self._refuse(self.server.owner.put_fault)
        self.server.owner.objects[unquote(urlsplit(self.path).path).strip("/")] = body
        self._send(200, b"", {"ETag": _etag(body)})

    def _answer(self) -> None:
        faulty = self.server.owner
        faulty.signed = self.headers.get("Authorization") or ""
        split = urlsplit(self.path)
        name = unquote(split.path).strip("/")
        faulty.seen.append(
            f"{self.command} {name} {self.headers.get('Range') or ''} {split.query}".strip()
        )
        fault = faulty.always or (
            faulty.faults.popleft() if faulty.faults and self.command == "GET" else ""
        )
        if fault == "slow":
            faulty.closing.wait(0.6)
            fault = ""
        if fault[:3] in ("301", "307"):
            return self._send(int(fault[:3]), b"", {"Location": fault[4:] + self.path})
        if fault.isdigit():
            return self._refuse(fault)
        if "list-type" in parse_qs(split.query):
            return self._list(name, parse_qs(split.query))
        if name not in faulty.objects:
            return self._refuse("404")
        self._object(faulty.objects[name], fault)

    def _object(self, data: bytes, fault: str) -> None:
        found = re.fullmatch(
            r"bytes=(\d+)-(\d+)", (self.headers.get("Range") or "") * (fault != "whole")
        )
        start, stop = (
            (int(found[1]), min(int(found[2]) + 1, len(data))) if found else (0, len(data))
        )
        headers = {"ETag": _etag(data), "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}
        if found:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
        body = data[start:stop]
        if self.command == "GET" and fault not in ("", "whole"):
            return self._break_off(fault, body, headers)
        self._send(206 if found else 200, body, headers)

    def _break_off(self, fault: str, body: bytes, headers: dict[str, str]) -> None:
        """Promise the body, send half of it."""
        self._head(206, len(body), headers)
        self.wfile.write(body[: len(body) // 2])
        self.wfile.flush()
        self.close_connection = True
        if fault == "stall":
            self.server.owner.closing.wait()
        if fault == "reset":  # closing with a linger of nothing sends RST instead of FIN
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def _list(self, bucket: str, query: dict[str, list[str]]) -> None:
        prefix = query.get("prefix", [""])[0]
        rows = "".join(
            f"<Contents><Key>{name.partition('/')[2]}</Key><Size>{len(data)}</Size>"
            "<LastModified>2024-01-01T00:00:00.000Z</LastModified></Contents>"
            for name, data in sorted(self.server.owner.objects.items())
            if name.startswith(f"{bucket}/{prefix}")
            and "/" not in name.removeprefix(f"{bucket}/{prefix}")
        )
        body = (
            '<?xml version="1.0"'
            f' encoding="UTF-8"?><ListBucketResult><IsTruncated>false</IsTruncated>{rows}'
        )
        self._send(
            200, (body + "</ListBucketResult>").encode(), {"Content-Type": "application/xml"}
        )

    def _refuse(self, status: str) -> None:
        code = ERRORS[status]
        error = f"<Code>{code}</Code><Message>{MESSAGES.get(code, 'no')}</Message>"
        body = f'<?xml version="1.0" encoding="UTF-8"?><Error>{error}</Error>'.encode()
        self._send(int(status), body, {"Content-Type": "application/xml"})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self._head(status, len(body), headers)
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        known = {"Content-Length": str(length), "x-amz-bucket-region": "ap-south-1"}
        for name, value in {**headers, **known}.items():
            self.send_header(name, value)
        self.end_headers()


def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'
