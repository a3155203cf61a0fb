"""The Ray that `udl train` starts for itself: no one else gets in, by the network or as another
user of the machine, it has the modules of the command, and outlives the terminal.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.launch.test_ray_options import bad_modules, script
from tests.sockets import is_loopback

START = """
import json, os, signal, subprocess, sys
from udl_dist.launch import ray_runtime
from udl_dist.launch.process_reaper import VARIABLE, family
from tests.sockets import listening
from tests.commands.local import marked
def origins():
    from importlib.util import find_spec
    return {name: find_spec(name).origin for name in ("udl_dist", "numpy", "wandb")}
before = dict(os.environ)
ray_runtime.start("", False)
import ray
head = ray.get_runtime_context().gcs_address
there, modules = ray.get(ray.remote(lambda: (os.environ[VARIABLE], origins())).remote())
token = ray_runtime._token_file()
client = f"GcsClient(address='{head}')"
code = f"from ray._raylet import GcsClient; {client}.internal_kv_keys(b'', None, 9)"
joined = {}
for name, shown in (("none", ""), ("wrong", "0" * 64), ("own", token.read_text())):
    mode = {"RAY_AUTH_MODE": "token" if shown else "disabled", "RAY_AUTH_TOKEN": shown}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=os.environ | mode, capture_output=True, text=True)
    joined[name] = (done.returncode, done.stderr)
found = listening([os.getpid(), *marked(f"{VARIABLE}={there}".encode())])
modes = [path.stat().st_mode & 0o777 for path in (token.parent, token)]
names = {*before, *os.environ}
left = {name: os.environ.get(name) for name in names if os.environ.get(name) != before.get(name)}
for process in family(there):
    os.kill(process.number, signal.SIGHUP)
alive = ray.get(ray.remote(lambda: True).remote(), timeout=30)
result = {"sockets": sorted(found), "modes": modes, "joined": joined, "left": left, "alive": alive}
print(json.dumps(result | {"token": str(token), "modules": [origins(), modules]}))
ray_runtime.end()
"""


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one private Ray was seen to be; its command ran in a folder with bad modules, with a
    long TMPDIR, and its processes have had SIGHUP.
    """
    folder = tmp_path_factory.mktemp("start")
    long = folder / ("long" * 20)
    long.mkdir()
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    # A program's own folder comes first on its path: `tests` is found by this.
    clean |= {
        "HOME": str(folder),
        "TMPDIR": str(long),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    done = subprocess.run(
        [sys.executable, str(script(folder / "program", START))],
        cwd=bad_modules(folder / "here"),
        env=clean,
        umask=0,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found | {"home": folder}


def test_workers_import_the_modules_of_the_command(started: dict[str, Any]) -> None:
    here, there = started["modules"]
    assert there == here


def test_it_starts_where_tmpdir_is_long_and_outlives_a_hangup(started: dict[str, Any]) -> None:
    assert started["alive"]


def test_it_is_on_loopback_and_asks_for_a_token_that_only_its_owner_can_read(
    started: dict[str, Any],
) -> None:
    found = started
    assert found["sockets"]
    assert all(is_loopback(address) for address, _ in found["sockets"]), found["sockets"]
    assert found["modes"] == [0o700, 0o600]
    for name in ("none", "wrong"):
        code, said = found["joined"][name]
        assert code and "InvalidAuthToken" in said
    assert found["joined"]["own"][0] == 0
    assert not [name for name in found["left"] if re.search("TOKEN|WINDOWS|UDL", name)], (
        "what it starts for itself"
    )
    assert not Path(found["token"]).parent.exists() and not (found["home"] / ".ray").exists()
