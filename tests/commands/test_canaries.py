"""Secrets given by every way there is, and then looked for wherever they must not be: 0 hits.

A secret that is exported goes to the processes that are started there, by the environment that
children inherit: so AWS and W&B want it. Environments of processes are not searched, therefore;
what Ray knows of a job is.
"""

import base64
import json
import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.commands.local import Route, ask, routes, temporary, token, up
from tests.commands.test_job import JOBS
from tests.runs.tracked import unwell
from tests.storage.served import put, served
from tests.training.learn import packed
from udl_dist.commands import connection
from udl_dist.storage import objects

pytestmark = pytest.mark.long
WAYS = ("environment", "files")


@dataclass
class Canaries:
    """Secrets by name, in the forms that they could have, and where they were seen."""

    secrets: dict[str, str] = field(default_factory=dict)
    hits: set[tuple[str, str]] = field(default_factory=set)
    searched: int = 0

    def new(self, name: str) -> str:
        return self.add(name, secrets.token_hex(20))

    def add(self, name: str, secret: str) -> str:
        self.secrets[name] = secret
        return secret

    def look(self, where: str, content: bytes) -> None:
        self.searched += 1
        for name, secret in self.secrets.items():
            forms = [secret.encode(), base64.b64encode(f"api:{secret}".encode())]
            if any(form in content for form in forms):
                self.hits.add((name, where))

    def look_into(self, folder: Path, but: tuple[Path, ...] = ()) -> None:
        for path in folder.rglob("*"):
            try:
                if path.is_file() and path not in but:
                    self.look(str(path), path.read_bytes())
            except OSError:
                continue  # it has just gone

    @contextmanager
    def looking_at_commands(self) -> Iterator[None]:
        """Meanwhile the command lines of all processes of this machine, several times a second."""
        over = threading.Event()

        def watch() -> None:
            while not over.wait(0.2):
                for entry in Path("/proc").glob("[0-9]*/cmdline"):
                    try:
                        self.look("argv", entry.read_bytes())
                    except OSError:
                        continue

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def given(way: str, home: Path, canaries: Canaries) -> dict[str, str]:
    """The environment of somebody who gives the secrets in this way."""
    names = {
        "AWS_ACCESS_KEY_ID": "aws id",
        "AWS_SECRET_ACCESS_KEY": "aws secret",
        "AWS_SESSION_TOKEN": "aws session",
    }
    if way == "environment":
        return {
            "WANDB_API_KEY": canaries.new("W&B key"),
            **{key: canaries.new(name) for key, name in names.items()},
        }
    (home / ".netrc").write_text(
        f"machine 127.0.0.1\n  login user\n  password {canaries.new('netrc')}\n"
    )
    (home / ".netrc").chmod(0o600)
    (home / "key").write_text(canaries.new("key_file"))
    (home / ".aws").mkdir()
    lines = [f"{key.lower()} = {canaries.new(name)}" for key, name in names.items()]
    (home / ".aws" / "credentials").write_text("\n".join(["[canary]", *lines, ""]))
    return {"AWS_PROFILE": "canary"}


def everything_shown(canaries: Canaries, address: str) -> None:
    """All GET routes of the dashboard and the agents, and details of what they list."""
    shown = f"Bearer {token()}"

    def look(path: str, where: str = address) -> bytes:
        status, body = ask(Route(where, "GET", path, False), shown)
        canaries.look(f"GET {path}", body)
        return body if status == 200 else b"{}"

    for route in routes(address):
        # see SECURITY.md; ours never asks for it
        if route.method == "GET" and not route.path.endswith("/tail"):
            look(route.filled, route.address)
    jobs = json.loads(look("/api/jobs/"))
    assert len(jobs) > 2
    for job in jobs:
        for path in ("", "/logs"):
            look(f"/api/jobs/{job['submission_id'] or job['job_id']}{path}")
    for kind in (
        "actors",
        "tasks",
        "workers",
        "objects",
        "runtime_envs",
        "nodes",
        "jobs",
        "placement_groups",
    ):
        look(f"/api/v0/{kind}?detail=true&limit=1000")
    look("/logical/actors?limit=1000")


@pytest.mark.parametrize("way", WAYS)
def test_secrets_are_nowhere_but_where_they_were_put(
    way: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    canaries, heard, said = Canaries(), list[bytes](), list[str]()
    home, rays = tmp_path / "home", tmp_path_factory.mktemp("rays")
    home.mkdir()
    data = packed(tmp_path / "data", records=300)
    with (
        unwell(200, starts=True, heard=heard) as (wandb, _),
        served(),
        pytest.MonkeyPatch.context() as patch,
    ):
        source = put(data / "train", "training")
        for name in [
            name
            for name in os.environ
            if name.startswith(("WANDB", "AWS_ACC", "AWS_SEC", "AWS_SES"))
        ]:
            patch.delenv(name)
        patch.setenv("RAY_TMPDIR", f"/tmp/udl-{secrets.token_hex(3)}")
        ours = {"HOME": str(home), "WANDB_BASE_URL": wandb, **given(way, home, canaries)}
        with up(rays, **ours) as address, canaries.looking_at_commands():
            canaries.add("Ray's token", token())
            clean = dict(os.environ)
            if way == "environment":
                clean |= {"RAY_AUTH_TOKEN": token(), connection.TOKEN_FILE: "/nowhere"}
            quiet = [
                "--data.source",
                source,
                "--data.size",
                "8",
                "--data.cache",
                str(tmp_path / "cache"),
                "--train.epochs",
                "1",
                "--train.batch_size",
                "64",
                "--run.workers",
                "1",
            ]
            key = ["--track.key_file", str(home / "key")] if way == "files" else []

            def udl(*asked: str, code: int = 0) -> None:
                done = subprocess.run(
                    [sys.executable, "-m", "udl_dist", *asked],
                    env=clean,
                    capture_output=True,
                    text=True,
                    timeout=300,
                    check=False,
                )
                said.append(done.stdout + done.stderr)
                assert done.returncode == code, said[-1]

            there = ["--address", address, "--follow"]
            udl(
                "submit",
                str(JOBS / "ae_digits.toml"),
                *quiet,
                "--run.folder",
                "s3://bucket/run",
                *there,
            )
            udl(
                "submit",
                str(JOBS / "search_vae_digits.toml"),
                *quiet[:-4],
                *key,
                "--train.batch_size",
                "64",
                "--search.trials",
                "2",
                "--search.final_seeds",
                "1",
                "--search.budget_images",
                "500",
                "--run.workers",
                "1",
                "--run.folder",
                str(tmp_path / "search"),
                *there,
            )
            udl(
                "train",
                str(JOBS / "ae_digits.toml"),
                *quiet,
                *key,
                "--run.folder",
                str(tmp_path / "run"),
            )
            udl("report", str(tmp_path / "run"))
            udl("export", str(tmp_path / "run"), str(tmp_path / "exported"))
            udl(
                "submit",
                str(JOBS / "ae_digits.toml"),
                *quiet,
                "--data.source",
                "s3://none/x",
                *there,
                code=5,
            )
            udl(
                "train",
                str(JOBS / "ae_digits.toml"),
                *quiet,
                "--data.source",
                "s3://none/x",
                "--run.folder",
                str(tmp_path / "other"),
                code=3,
            )
            udl("status", "--json", *there[:2])
            assert any(b"train/" in each for each in heard), "W&B got nothing"
            everything_shown(canaries, address)
            canaries.look_into(temporary())
            canaries.look_into(Path(os.environ["RAY_TMPDIR"]))
            canaries.look_into(rays, but=(connection.state() / "token",))
            canaries.look_into(
                tmp_path, but=tuple(home / name for name in (".netrc", "key", ".aws/credentials"))
            )
            for name in (listed := objects.listing("s3://bucket/")):
                canaries.look(f"s3 {name}", objects.read(f"s3://bucket/{name}"))
            assert any(name.startswith("run/checkpoints/") for name in listed)
            for reported in heard:
                canaries.look("the W&B server", reported)
            canaries.look("what was printed", "".join(said).encode())
            assert (tmp_path / "run" / "report.html").exists() and (tmp_path / "exported").exists()
            assert canaries.searched > 1000
            assert not canaries.hits
