"""The closed cluster of this machine for tests: brought up and down, its routes, what listens, what
it lets in.
"""

import http.client
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest

from udl_dist.commands import connection

SCRIPT = Path(__file__).parent.parent.parent / "cluster" / "local.sh"
ROUTE = re.compile(r"<ResourceRoute \[(\w+)\] <\w+  ([^\s>]+)( -> PosixPath)?")


class Route(NamedTuple):
    """A route as a server has it in its own table, with the address of that server."""

    address: str
    method: str
    path: str
    is_folder: bool

    @property
    def filled(self) -> str:
        """The path with something in each of its parameters."""
        return re.sub(r"\{\w+\}", "x", self.path) + ("/x" if self.is_folder else "")


@contextmanager
def up(state: Path, **environment: str) -> Iterator[str]:
    """`local.sh up` under the loosest umask; its address."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(state))
        patch.setenv("UDL_PYTHON", sys.executable)  # whatever is first on PATH
        for name in (
            *connection.ADDRESSES,
            connection.TOKEN_FILE,
            "RAY_AUTH_TOKEN",
            "RAY_AUTH_MODE",
        ):
            patch.delenv(name, raising=False)
        for name, value in environment.items():
            patch.setenv(name, value)
        done = subprocess.run(
            [SCRIPT, "up"], umask=0, capture_output=True, text=True, timeout=180, check=False
        )
        assert done.returncode == 0, done.stderr
        try:
            yield (connection.state() / "address").read_text()
        finally:
            done = subprocess.run(
                [SCRIPT, "down"], capture_output=True, text=True, timeout=300, check=False
            )
            assert done.stdout == "down: nothing is left\n", done.stderr
            assert not list(connection.state().iterdir())


def temporary() -> Path:
    """Where Ray keeps its sessions and logs."""
    return Path((connection.state() / "temporary").read_text().strip())


def token() -> str:
    return (connection.state() / "token").read_text()


def routes(address: str) -> list[Route]:
    """All routes of the dashboard and of the agent of each node, from the tables that they write
    down.
    """
    found = []
    for log in (
        path
        for name in ("dashboard.log", "dashboard_agent.log")
        for path in temporary().rglob(name)
    ):
        if "session_latest" in log.parts:
            continue
        text = log.read_text()
        agent = re.search(r"Dashboard agent http address: (\S+)", text)
        where = f"http://{agent[1]}" if agent else address
        found += [Route(where, each[1], each[2], bool(each[3])) for each in ROUTE.finditer(text)]
    return found


def ask(route: Route, shown: str = "", seconds: float = 20) -> tuple[int, bytes]:
    """Status and body of the answer to `shown` as the Authorization; status 0 if none came."""
    connection = http.client.HTTPConnection(urlsplit(route.address).netloc, timeout=seconds)
    try:
        connection.request(
            route.method, route.filled, headers={"Authorization": shown} if shown else {}
        )
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()


def processes() -> list[int]:
    """The processes of this cluster."""
    mark = f"UDL_LOCAL_CLUSTER={(connection.state() / 'mark').read_text()}".encode()
    return marked(mark)


def marked(mark: bytes) -> list[int]:
    """The processes that have something in their environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in entry.read_bytes():
                found.append(int(entry.parent.name))
        except OSError:
            continue  # it has just ended, or is somebody else's
    return found
