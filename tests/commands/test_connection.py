"""The connection to a cluster: what is accepted, what is refused, where the token is sent."""

import json
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from tests.storage.loopback import Loopback
from tests.test_cli import udl_subprocess as udl
from udl_dist.commands import connection, job_client
from udl_dist.errors import ClusterError, UsageError

TOKEN = "0123456789abcdef" * 4


class Asked(BaseHTTPRequestHandler):
    server: Any

    def do_GET(self) -> None:
        dashboard: Dashboard = self.server.owner
        code, answer = dashboard.answer(self.path, self.headers.get("Authorization", ""))
        self.send_response(code)
        if dashboard.elsewhere:
            self.send_header("Location", dashboard.elsewhere)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_: Any) -> None:
        pass


class Dashboard(Loopback):
    """What a Ray dashboard answers, from a server of our own: with it no test waits for a Ray."""

    def __init__(self) -> None:
        super().__init__(Asked)
        self.mode, self.version, self.elsewhere = "token", version("ray"), ""
        self.heard = list[str]()
        self.jobs = list[dict[str, Any]]()
        self.printed = list[str]()  # the log of a job at each look, the last one when it has ended

    def answer(self, path: str, shown: str) -> tuple[int, Any]:
        self.heard.append(shown)
        if path == "/api/authentication_mode":
            return 200, {"authentication_mode": self.mode}
        if self.mode == "token" and shown != f"Bearer {TOKEN}":
            return 403 if shown else 401, {}
        if path == "/api/jobs/":
            return 200, self.jobs
        if path.endswith("/logs"):
            return 200, {"logs": self.printed.pop(0)}
        if path.startswith("/api/jobs/"):
            status = "RUNNING" if len(self.printed) > 1 else "SUCCEEDED"
            return 200, {"submission_id": path.rpartition("/")[2], "status": status}
        return (302 if self.elsewhere else 200), {"ray_version": self.version}


@pytest.fixture
def dashboard(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Dashboard]:
    for name in (*connection.ADDRESSES, "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv(connection.TOKEN_FILE, str(tmp_path / "token"))
    (tmp_path / "token").write_text(TOKEN + "\n")
    with Dashboard() as made:
        yield made


@pytest.fixture
def thief() -> Iterator[Dashboard]:
    """A server that must hear of nothing."""
    with Dashboard() as made:
        yield made


def test_the_right_token_opens(dashboard: Dashboard) -> None:
    opened = connection.opened(dashboard.address)
    assert (opened.closed, opened.ray_version) == (True, version("ray"))
    assert dashboard.heard == ["", f"Bearer {TOKEN}"], (
        "the token is shown only where it is asked for"
    )


def test_neither_a_proxy_nor_netrc_comes_between(
    dashboard: Dashboard, thief: Dashboard, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of the environment of the command: HTTP libraries send the token there, or a password here,
    by themselves.
    """
    (tmp_path / ".netrc").write_text("default login me password hunter2\n")
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, thief.address)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    dashboard.jobs = [{"submission_id": "udl-a-0123456789ab", "status": "RUNNING", "start_time": 1}]
    done = udl("status", "--address", dashboard.address)
    assert done.stdout == "udl-a-0123456789ab  running\n", done.stderr
    assert {*dashboard.heard} == {"", f"Bearer {TOKEN}"} and thief.heard == []


def test_a_job_is_followed_by_whole_lines_without_those_of_ray(
    dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_client, "POLL_SECONDS", 0.01)
    log = "Running entrypoint for job udl-a: exec python\nfirst\nsecond\nlast"
    dashboard.printed = ["", *(log[:end] for end in (20, 49, 54, len(log)))]
    client = job_client.JobClient(connection.opened(dashboard.address))
    pieces = list(client.follow("udl-a"))
    assert pieces == ["first\n", "second\nlast\n"]
    state = client.wait("udl-a")
    assert (state.line(), state.exit_code) == ("udl-a  succeeded, exit code 0", 0)


def test_the_cluster_of_this_machine_is_found(
    dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(connection.TOKEN_FILE)
    connection.state().mkdir(parents=True)
    (connection.state() / "address").write_text(dashboard.address)
    (connection.state() / "token").write_text(TOKEN)
    assert connection.opened("").address == dashboard.address


def test_an_address_that_was_asked_for_wins(
    dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", dashboard.address)
    assert connection.opened("").address == dashboard.address
    with pytest.raises(ClusterError, match="no Ray dashboard at http://127.0.0.1:1"):
        connection.opened("127.0.0.1:1")


def test_wrong_and_missing_tokens_are_refused_without_telling_them(
    dashboard: Dashboard, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("wrong-token")
    with pytest.raises(
        ClusterError, match=r"does not accept the token: is it this cluster's\? \(403\)"
    ) as wrong:
        connection.opened(dashboard.address)
    assert "wrong-token" not in str(wrong.value)
    for content in ("", "two\nlines", "not ascii: é"):
        (tmp_path / "token").write_text(content)
        with pytest.raises(ClusterError, match="asks for a token, and there is none in"):
            connection.opened(dashboard.address)
    (tmp_path / "token").unlink()
    with pytest.raises(ClusterError, match="put it there with mode 0600"):
        connection.opened(dashboard.address)


def test_a_cluster_of_another_ray_is_refused(dashboard: Dashboard) -> None:
    dashboard.version = "2.9.0"
    with pytest.raises(
        ClusterError, match=rf"runs Ray 2\.9\.0, here is {version('ray')}: install the same"
    ):
        connection.opened(dashboard.address)


def test_no_redirect_carries_the_token_away(dashboard: Dashboard, thief: Dashboard) -> None:
    dashboard.elsewhere = thief.address + "/stolen"
    with pytest.raises(ClusterError, match="answered 302"):
        connection.opened(dashboard.address)
    assert thief.heard == []


def test_what_is_no_dashboard_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with monkeypatch.context() as patch:
            patch.setattr(connection, "WAIT_SECONDS", 0.2)
            with pytest.raises(ClusterError, match="is the address right, is the tunnel open"):
                connection.opened(f"127.0.0.1:{port}")
    with pytest.raises(ClusterError, match="connection refused"):
        connection.opened(f"http://127.0.0.1:{port}")
    with pytest.raises(ClusterError, match=r"no Ray dashboard at http://nowhere\.invalid:8265"):
        connection.opened("nowhere.invalid:8265")


@pytest.mark.parametrize(
    "address",
    [
        "ray://head:10001",
        "head",
        "http://head:port",
        "auto",
        "http://:8265",
        "ftp://a:1",
        "https://[head",
    ],
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(
        UsageError, match=r"is not the address of a dashboard: give http://HOST:8265"
    ):
        connection.opened(address)


@pytest.mark.parametrize("address", ["http://me:hunter2@head:8265", "me:hunter2@head"])
def test_an_address_with_credentials_is_refused_without_telling_them(address: str) -> None:
    with pytest.raises(UsageError, match="must not hold credentials") as refused:
        connection.opened(address)
    assert "hunter2" not in str(refused.value)


def test_an_open_cluster_far_away_is_refused_and_so_is_a_token_in_clear(
    dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_is_loopback", lambda address: False)
    with pytest.raises(ClusterError, match="token would go to .* in clear: use https, or a tunnel"):
        connection.opened(dashboard.address)
    assert dashboard.heard == [""]
    dashboard.mode = "disabled"
    with pytest.raises(
        ClusterError, match="asks for no token, so anyone who reaches it can run code there"
    ):
        connection.opened(dashboard.address)
    assert not connection.opened(dashboard.address, insecure=True).closed
    assert dashboard.heard.count(f"Bearer {TOKEN}") == 0, "an open cluster is shown no token"


def test_loopback_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(
        connection._is_loopback(f"http://{host}:1")
        for host in ("127.0.0.1", "127.1.2.3", "[::1]", "localhost")
    )
    assert not any(
        connection._is_loopback(f"http://{host}:1")
        for host in ("10.0.0.1", "head", "127.0.0.1.evil.example")
    )
