"""The Ray that `udl train` starts for itself: no one else gets in, by the network or as another
user of the machine.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from tests.sockets import is_loopback

START = """
import json, os, subprocess, sys
from pathlib import Path
from udl_dist.launch import ray_runtime
from udl_dist.launch.process_reaper import VARIABLE
from tests.sockets import listening
from tests.commands.local import marked
before = dict(os.environ)
ray_runtime.start("", False)
import ray
head = ray.get_runtime_context().gcs_address
there = ray.get(ray.remote(lambda: os.environ[VARIABLE]).remote())
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
result = {"sockets": sorted(found), "modes": modes, "joined": joined, "left": left}
print(json.dumps(result | {"token": str(token)}))
ray_runtime.end()
"""


def test_a_private_ray_is_on_loopback_and_asks_for_a_token_that_only_its_owner_can_read(
    tmp_path: Path,
) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    clean |= {"HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", START],
        env=clean,
        umask=0,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
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
    assert not Path(found["token"]).parent.exists() and not (tmp_path / ".ray").exists()
