"""The connection to a cluster's dashboard: its address, its token and the version check, by HTTP.

The token is read from a file and sent in a header; it is never printed. Imports no Ray.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import json
import os
import urllib.error
import urllib.request
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from udl_dist.core.config_schema import as_path
from udl_dist.errors import ClusterError, UsageError

# For the first questions: a wrong address often gives no answer at all.
WAIT_SECONDS = 5.0
JOB_SECONDS = 60.0  # once it is known to answer: it may have to wait for a node
# Ray's own variables, in the order in which its job client reads them.
TOKEN_FILE = "RAY_AUTH_TOKEN_PATH"
ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")


@dataclass(frozen=True)
class Connection:
    """A dashboard; with `closed` it requires the token in `token_file`."""

    address: str
    token_file: Path
    closed: bool = False
    ray_version: str = ""
    seconds: float = JOB_SECONDS  # for an answer

    def ask(
        self,
        method: str,
        path: str,
        content: bytes | dict[str, Any] | None = None,
        missing: Any = None,
    ) -> Any:
        """The dashboard's answer, or `missing` to a 404; raises ClusterError.

        A dictionary is sent as JSON.
        """
        # Read for each request and never stored in this object: the text of a dataclass shows its
        # fields.
        token = _token(self.token_file) if self.closed else ""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        if isinstance(content, dict):
            content = json.dumps(content).encode()
            headers["Content-Type"] = "application/json"
        request = urllib.request.Request(self.address + path, content, headers, method=method)
        try:
            with _OPENER.open(request, timeout=self.seconds) as answer:
                # Uploads and deletions are answered by nothing.
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            line = _last_line(error)
            # 401: no token arrived; 403: it is another cluster's.
            if error.code in (401, 403):
                raise ClusterError(
                    f"{self.address} does not accept the token: is it this cluster's?"
                    f" ({error.code})"
                ) from None
            if error.code == 404 and missing is not None:
                return missing
            raise ClusterError(
                f"{self.address} answered {error.code}{line}: is it the dashboard of a Ray cluster?"
            ) from None
        # ValueError: the answer is not JSON, so another program listens there.
        except (OSError, ValueError, http.client.HTTPException) as error:
            # urllib wraps the error of the socket.
            reason = getattr(error, "reason", error)
            raise ClusterError(
                f"no Ray dashboard at {self.address} ({_plain(reason)}): is it up, is the address"
                " right, is the tunnel open?"
            ) from None


def opened(address: str, insecure: bool = False) -> Connection:
    """Find the cluster, send the token, compare versions; UsageError or ClusterError."""
    address, token_file = _found(address)
    first = Connection(address, token_file, seconds=WAIT_SECONDS)
    # The one question that is answered without a token. Releases of Ray that know no token answer
    # 404, which counts as an open cluster.
    mode = first.ask("GET", "/api/authentication_mode", missing={}).get("authentication_mode")
    # Any mode that we do not know is assumed to check a token.
    closed = mode not in (None, "disabled")
    if not (closed or insecure or _is_loopback(address)):
        raise ClusterError(
            f"{address} asks for no token, so anyone who reaches it can run code there: start it"
            " with RAY_AUTH_MODE=token, or say --insecure"
        )
    # A bearer token can be replayed by anyone who reads it on the way.
    if closed and not insecure and address.startswith("http:") and not _is_loopback(address):
        raise ClusterError(
            f"the token would go to {address} in clear: use https, or a tunnel (ssh -L "
            "8265:localhost:8265) and --address http://127.0.0.1:8265, or say --insecure"
        )
    # A wrong token is refused here, before anything is packed or sent.
    version = replace(first, closed=closed).ask("GET", "/api/version").get("ray_version", "")
    connection = Connection(address, token_file, closed, str(version))
    _refuse_version(connection)
    return connection


def state() -> Path:
    """Where cluster/local.sh stores the address and the token of the cluster on this machine."""
    return as_path(os.environ.get("XDG_STATE_HOME") or "~/.local/state") / "udl-dist" / "cluster"


def _found(asked: str) -> tuple[str, Path]:
    """The address given, else of the environment, else of this machine's cluster; and its token."""
    local = state() / "address"
    # Absent unless cluster/local.sh has started a cluster.
    own = local.read_text(encoding="utf-8").strip() if local.exists() else ""
    named = next((os.environ[name] for name in ADDRESSES if os.environ.get(name)), "")
    if not (address := asked or named or own):
        raise UsageError(
            "which cluster? give --address http://HOST:8265 (its dashboard), or start one: "
            "cluster/local.sh up"
        )
    address = _url(address)
    if os.environ.get(TOKEN_FILE):
        # As for Ray itself, the variable comes before any default file.
        return address, as_path(os.environ[TOKEN_FILE])
    # The token of this machine's cluster is sent to that cluster alone.
    return address, state() / "token" if address == own else as_path("~/.ray/auth_token")


def _url(address: str) -> str:
    """The address as a URL of its dashboard."""
    url = address.rstrip("/") if "://" in address else f"http://{address.rstrip('/')}"
    # First of all: the refusal below repeats the address, which must not show a password.
    if "@" in url or "?" in url:
        raise UsageError(
            "an address must not hold credentials: the token is read from the file that "
            f"{TOKEN_FILE} names"
        )
    try:
        parts = urlsplit(url)
        # A proxy in front of the dashboard serves https on its usual port; Ray never uses port 80.
        has_port = parts.port is not None or parts.scheme == "https"
        whole = parts.scheme in ("http", "https") and parts.hostname and has_port
    except ValueError:  # an open bracket of IPv6, or a port that is not a number
        whole = False
    if not whole:
        raise UsageError(f"{address!r} is not the address of a dashboard: give http://HOST:8265")
    return url


def _is_loopback(address: str) -> bool:
    # A name other than localhost may resolve to any machine, so it counts as remote.
    host = urlsplit(address).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _token(file: Path) -> str:
    if given := os.environ.get("RAY_AUTH_TOKEN"):
        return given.strip()
    try:
        token = file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        token = ""
    # http.client refuses a header with a line break, and its message would quote the token.
    if not token or not token.isprintable():
        raise ClusterError(
            f"the cluster asks for a token, and there is none in {file}: put it there with mode"
            f" 0600, or let {TOKEN_FILE} name the file"
        )
    return token


def _last_line(error: urllib.error.HTTPError) -> str:
    """The last line of an error page, which may hold a whole traceback."""
    with contextlib.suppress(OSError, http.client.HTTPException), error:
        # Of a traceback the last line says what happened; the rest may be of any length.
        lines = error.read(2**16).decode(errors="replace").split("\n")
        if said := [line.strip() for line in lines if line.strip()]:
            return f" ({''.join(each for each in said[-1][:200] if each.isprintable())})"
    return ""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The token is sent to the given address and nowhere else."""

    def redirect_request(self, *_: Any) -> None:
        return None  # urllib then raises an HTTPError with the code of the redirect


# No proxy of the environment either: it would read the token. urllib also looks at no ~/.netrc,
# unlike requests in Ray's own client, where an entry for the host replaces the token.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect)


def _plain(reason: object) -> str:
    return (getattr(reason, "strerror", None) or type(reason).__name__).lower()


def _refuse_version(connection: Connection) -> None:
    from importlib.metadata import version

    # From the metadata of the installed package: importing Ray takes seconds.
    if connection.ray_version != (ours := version("ray")):
        raise ClusterError(
            f"{connection.address} runs Ray {connection.ray_version or '(unknown)'}, here is"
            f" {ours}: install the same here or there"
        )
