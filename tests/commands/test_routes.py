"""Who is let in by a cluster of `local.sh`: each route of its own tables, each port, each way to
join it.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands.local import Route, ask, processes, routes, temporary, token, up
from tests.sockets import is_loopback, listening

pytestmark = pytest.mark.long
# All that answers without the token: the page, what it needs to ask for the token, and whether
# something lives.
OPEN = {
    "/",
    "/favicon.ico",
    "/static",
    "/api/authentication_mode",
    "/api/gcs_healthz",
    "/api/healthz",
    "/api/local_raylet_healthz",
}
WRONG = "Bearer " + "0" * 64


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with up(tmp_path_factory.mktemp("state")) as address:
        yield address


def test_every_route_of_the_dashboard_and_of_each_node_asks_for_the_token(cluster: str) -> None:
    found = routes(cluster)
    assert len([route for route in found if route.address == cluster]) > 50, (
        "the table was not found"
    )
    assert len({route.address for route in found}) == 4, "a dashboard and three nodes"
    unlike = {
        (route, shown): status
        for route in found
        for shown, refused in (("", {401}), (WRONG, {403}))
        if (status := ask(route, shown)[0]) not in refused
    }
    assert {route.path for route, _ in unlike} == OPEN, unlike
    assert all(route.method in ("GET", "OPTIONS") for route, _ in unlike), unlike


def test_with_the_token_they_answer(cluster: str) -> None:
    asked = [route for route in routes(cluster) if route.method == "GET" and "{" not in route.path]
    answers = {
        route.path: ask(route, f"Bearer {token()}")[0]
        for route in asked
        if route.address == cluster
    }
    good = {path for path, status in answers.items() if status == 200}
    assert {"/api/version", "/api/jobs/", "/api/v0/nodes", "/api/v0/actors"} <= good
    assert len(good) > 20 and 401 not in answers.values(), answers


def test_what_speaks_http_is_on_loopback_and_asks_for_the_token(cluster: str) -> None:
    """Whatever listens on other interfaces speaks gRPC, to which the next test comes."""
    found = listening(processes())
    assert len(found) > 9
    for address, port in found:
        host = address if is_loopback(address) else "127.0.0.1"
        status, _ = ask(
            Route(f"http://{host.removeprefix('::ffff:')}:{port}", "GET", "/x", False), seconds=3
        )
        assert status == 0 or (status == 401 and is_loopback(address)), (address, port, status)


# What each does is done with the token by the tests of udl submit, or here.
NODE = (
    "from ray.scripts.scripts import cli; cli(['start', '--address={head}', '--num-cpus=1',"
    " '--temp-dir={folder}'])"
)
DRIVER = (
    "from ray._raylet import GcsClient; GcsClient(address='{head}').internal_kv_keys(b'', None, 9)"
)
CLIENT = """
import grpc, os
from ray.core.generated import ray_client_pb2 as messages, ray_client_pb2_grpc as services
asked = messages.ClusterInfoRequest(type=messages.ClusterInfoType.PING)
shown = [("authorization", "Bearer " + os.environ["RAY_AUTH_TOKEN"])]
stub = services.RayletDriverStub(grpc.insecure_channel("{client}"))
stub.ClusterInfo(asked, metadata=shown, timeout=20)
"""


@pytest.mark.parametrize("way", [NODE, DRIVER, CLIENT], ids=["node", "driver", "client"])
def test_no_one_joins_without_the_token(cluster: str, way: str, tmp_path: Path) -> None:
    head = (temporary() / "ray_current_cluster").read_text().strip()
    argv = [Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0") for process in processes()]
    [client] = [
        next(part[7:] for part in each if part.startswith(b"--port="))
        for each in argv
        if b"ray.util.client.server" in each
    ]
    code = way.format(head=head, client=f"127.0.0.1:{client.decode()}", folder=tmp_path)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    before = set(processes())
    for shown in ("", "0" * 64, *([] if way == NODE else [token()])):
        mode = {
            "HOME": str(tmp_path),
            "RAY_AUTH_MODE": "token" if shown else "disabled",
            "RAY_AUTH_TOKEN": shown,
        }
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=clean | mode,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if shown == token():
            assert done.returncode == 0, done.stderr
        else:
            assert done.returncode != 0
            assert re.search("InvalidAuthToken|UNAUTHENTICATED", done.stderr), done.stderr
    assert set(processes()) <= before
