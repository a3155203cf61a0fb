"""Machines made of Linux namespaces: each has an address, a name, processes and a temporary and a
home folder of its own and can write nothing else; an S3-speaking server that they all reach is all
that they share. Needs root.
"""

import contextlib
import ctypes
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.storage.served import served

REPOSITORY = Path(__file__).parent.parent.parent
HOME = Path.home()
OWN = ("/tmp", "/var/tmp", "/dev/shm", str(HOME))  # folders of which each node has another one
SERVER = "10.77.0.1"
SECONDS = 240  # for a command on a node
PIPED: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
HUB = """set -eu
ip link set lo up
ip link add br0 type bridge && ip addr add 10.77.0.1/24 dev br0 && ip link set br0 up
echo ready && exec cat"""
# A second network that leads nowhere, and a name that means loopback, as Debian's installer writes
# it.
NODE = """set -eu
umask 022
name=$1 address=$2 own=$3; shift 3
IFS= read -r token
hostname "$name"
ip link set lo up
ip link add aside0 type veth peer name aside1
ip addr add 192.0.2.1/24 dev aside0 && ip link set aside0 up && ip link set aside1 up
ip addr add "$address/24" dev eth0 && ip link set eth0 up && ip route add default via 10.77.0.1
mount -t tmpfs none /mnt
number=0; for path; do
    number=$((number + 1)); mkdir "/mnt/$number"; mount --bind "$path" "/mnt/$number"
    mount -o remount,bind,ro "/mnt/$number"
done
for path in $own; do mount -t tmpfs -o mode=1777 none "$path"; done
number=0; for path; do
    number=$((number + 1)); mkdir -p "$path"; mount --move "/mnt/$number" "$path"
done
mount -o remount,bind,ro /
printf '127.0.0.1 localhost\\n127.0.1.1 %s\\n' "$name" >/tmp/hosts
mount --bind /tmp/hosts /etc/hosts
# Without this torch asks a name server that cannot be reached.
: >/tmp/resolv.conf && mount --bind /tmp/resolv.conf /etc/resolv.conf
if [ -n "$token" ]; then
    umask 077; mkdir "$HOME/.ray"; printf %s "$token" >"$HOME/.ray/auth_token"
fi
echo ready && exec cat >/dev/null"""


def missing() -> str:
    """What keeps such machines from being made here, "" for nothing."""
    if os.geteuid() != 0:
        return "namespaces with a network of their own are made by root only"
    trial = (
        "ip link add br0 type bridge && ip link add v0 type veth peer name v1 && mount -t tmpfs"
        " none /mnt"
    )
    try:
        done = subprocess.run(
            ["unshare", "-n", "-m", "-p", "-u", "-i", "-f", "sh", "-c", trial],
            check=False,
            capture_output=True,
            text=True,
        )
    except FileNotFoundError:
        return "unshare is not installed"
    return (
        f"no namespaces, bridges or mounts here: {done.stderr.strip()}" if done.returncode else ""
    )


def entered(process: int, act: Callable[[], Any]) -> Any:
    """What `act()` returns in a thread that is in the network of `process`, as are the threads that
    it starts.
    """

    def there() -> Any:
        with open(f"/proc/{process}/ns/net") as network:
            if ctypes.CDLL(None, use_errno=True).setns(network.fileno(), 0):
                raise OSError(ctypes.get_errno(), "setns")
        return act()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(there).result()


@dataclass
class Node:
    """A machine; all that runs on it ends with its first process, which ends with this one."""

    name: str
    address: str
    keeper: subprocess.Popen[str]
    first: int
    environment: dict[str, str]
    wire: str
    hub: int

    def start(self, *command: str, **more: Any) -> subprocess.Popen[str]:
        """A command on it, with nothing of our own environment."""
        enter = ["nsenter", "-t", str(self.first), "-m", "-u", "-n", "-i", "-p", f"--wd={HOME}"]
        piped = PIPED | {"stdin": subprocess.DEVNULL} | more
        return subprocess.Popen([*enter, *command], env=self.environment, text=True, **piped)

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """The same, waited for."""
        words = ["env", *(f"{name}={value}" for name, value in environment.items()), *command]
        with self.start(*words) as process:
            try:
                out, err = process.communicate(timeout=SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def udl(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.run("python", "-m", "udl_dist", *arguments, **environment)

    def ray(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """`ray start`, which leaves Ray at work there."""
        start = [
            "python",
            "-m",
            "ray.scripts.scripts",
            "start",
            "--node-ip-address",
            self.address,
            "--object-store-memory",
            "80000000",
            "--disable-usage-stats",
        ]
        return self.run(*start, *arguments, **environment)

    def write(self, path: str, text: str) -> None:
        done = self.start("sh", "-c", 'cat >"$1"', "sh", path, stdin=subprocess.PIPE)
        _, said = done.communicate(text)
        assert done.returncode == 0, said

    def lose(self, unplugged: bool = False) -> None:
        """kill -9 of everything that runs there: so the kernel does it when the first process of a
        namespace dies.

        With its wire unplugged before, no closed connection tells of it.
        """
        if unplugged:
            _in_hub(self.hub, f"ip link set {self.wire} down")
        os.kill(self.first, signal.SIGKILL)
        self.keeper.communicate()


@dataclass
class Network:
    """What nodes are joined by, and the token that they all have a copy of."""

    hub: subprocess.Popen[str]
    endpoint: str
    token: str = field(default_factory=lambda: secrets.token_hex(32))
    nodes: list[Node] = field(default_factory=list)

    def add(self, knows_token: bool = True) -> Node:
        """One more machine."""
        number = len(self.nodes) + 2
        name, address = f"node-{number}", f"10.77.0.{number}"
        stored = [
            path
            for path in (sys.base_prefix, sys.prefix, str(REPOSITORY))
            if any(Path(path).is_relative_to(own) for own in OWN)
        ]
        keys = {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_ENDPOINT_URL_S3": self.endpoint,
        }
        environment = keys | {
            "HOME": str(HOME),
            "PATH": f"{sys.prefix}/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "PYTHONPATH": str(REPOSITORY),
            "OMP_NUM_THREADS": "1",
            "RAY_AUTH_MODE": "token",
            "RAY_worker_niceness": "0",
        }
        spaces = ["unshare", "-n", "-m", "-p", "-u", "-i", "-f", "--mount-proc", "--kill-child"]
        keeper = subprocess.Popen(
            [*spaces, "sh", "-c", NODE, "sh", name, address, " ".join(OWN), *stored],
            env=environment,
            text=True,
            **PIPED,
        )
        first = _child(keeper.pid)
        wire = f"v{number}"
        _in_hub(self.hub.pid, f"ip link add {wire} type veth peer name eth0 netns {first}")
        _in_hub(self.hub.pid, f"ip link set {wire} master br0 up")
        _begin(keeper, (self.token if knows_token else "") + "\n")
        self.nodes.append(Node(name, address, keeper, first, environment, wire, self.hub.pid))
        return self.nodes[-1]


@contextlib.contextmanager
def network() -> Iterator[Network]:
    """A network without nodes; object storage is at 127.0.0.1 here, as ever, and at an address of
    its own for nodes.
    """
    hub = subprocess.Popen(["unshare", "-n", "sh", "-c", HUB], text=True, **PIPED)
    try:
        _begin(hub, "")
        with served():
            from moto.server import ThreadedMotoServer

            server = ThreadedMotoServer(SERVER, 5000, verbose=False)  # of the same buckets
            entered(hub.pid, server.start)
            made = Network(hub, f"http://{SERVER}:5000")
            try:
                yield made
            finally:
                for node in made.nodes:
                    if node.keeper.poll() is None:
                        node.lose()
                server.stop()
    finally:
        hub.communicate()


def _in_hub(hub: int, command: str) -> None:
    subprocess.run(["nsenter", "-t", str(hub), "-n", *command.split()], check=True)


def _begin(process: subprocess.Popen[str], word: str) -> None:
    """Say the first word to a script and hear that it is ready."""
    assert process.stdin and process.stdout
    process.stdin.write(word)
    process.stdin.flush()
    if process.stdout.readline() != "ready\n":
        raise AssertionError(f"a namespace could not be made: {process.communicate()[1]}")


def _child(process: int) -> int:
    """The child of `unshare`, once there is one."""
    deadline = time.monotonic() + 10
    while not (children := Path(f"/proc/{process}/task/{process}/children").read_text().split()):
        assert time.monotonic() < deadline, "unshare started nothing"
        time.sleep(0.01)
    return int(children[0])
