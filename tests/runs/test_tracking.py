"""W&B gets a copy and never holds up a run: without a key, with a dead server, with one that never
answers.
"""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.runs.tracked import unwell
from udl_dist.errors import UsageError
from udl_dist.runs.settings import TrackSettings
from udl_dist.runs.tracking import read_key, resolved

TRACK = """
import contextlib, os, signal, sys, time
from pathlib import Path
from udl_dist.runs.settings import TrackSettings
from udl_dist.runs.tracking import Tracker
folder, mode, after = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
said = []
began = time.monotonic()
settings = TrackSettings(mode=mode, pictures=True)
tracker = Tracker(settings, folder, {"method.latent_dim": 8, "track.key_file": ""}, after,
                  said.append)
for images in (100, 200, 300):
    tracker.point(images, {"train/loss": images / 100, f"loss{images}": 0})
handed = time.monotonic() - began
if os.environ.get("KILLED"):
    while not (sent := folder / "wandb" / "sent").exists() or sent.read_text() != "300":
        time.sleep(0.1)
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            command = path.read_bytes()
            if b"wandb-core" in command and str(os.getpid()).encode() in command:
                os.kill(int(path.parent.name), signal.SIGKILL)
    tracker.point(400, {"loss400": 0})
tracker.close()
print(f"{handed:.3f} {time.monotonic() - began:.3f}")
for line in said:
    print(line)
"""


def track(
    folder: Path, mode: str = "auto", after: int = 0, **environment: str
) -> tuple[float, float, list[str]]:
    """Seconds until three points were handed over, seconds until the end, what was said; in a
    process of its own.
    """
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    clean |= {"HOME": str(folder), "NETRC": str(folder / ".netrc"), **environment}
    command = [sys.executable, "-c", TRACK, str(folder), mode, str(after)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=clean, timeout=90, check=False
    )
    assert done.returncode == 0, done.stderr
    first, *said = done.stdout.splitlines()
    handed, ended = map(float, first.split())
    return handed, ended, said


def content_of(line: str) -> bytes:
    """What W&B has stored in the folder at the end of a line."""
    stored = Path(line.rsplit(" ", 1)[1])
    return b"".join(path.read_bytes() for path in stored.rglob("*.wandb"))


def test_without_a_key_it_is_offline_and_says_how_to_upload(tmp_path: Path) -> None:
    handed, ended, said = track(tmp_path)
    assert handed < 0.5
    assert ended < 30
    (line,) = said
    assert line.startswith(f"W&B is offline; to upload: wandb sync {tmp_path}/wandb/offline-run-")
    content = content_of(line)
    assert b"train/loss" in content
    assert b"method.latent_dim" in content
    identity = (tmp_path / "wandb" / "run_id").read_text()
    assert line.endswith(identity)
    # A second start keeps the id and sends only what is new.
    *_, said = track(tmp_path, after=200)
    again = Path(said[0].rsplit(" ", 1)[1])
    assert again.name.endswith(identity)


def test_off_writes_nothing_and_says_nothing(tmp_path: Path) -> None:
    assert track(tmp_path, "off")[2] == []
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_not_there_costs_seconds_and_no_point(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        handed, ended, said = track(tmp_path, "online", WANDB_API_KEY="x" * 40, WANDB_BASE_URL=url)
    assert handed < 0.5
    assert ended < 30
    assert said[0].startswith(
        "W&B is offline although track.mode = online: 127.0.0.1 does not answer"
    )
    assert "wandb sync" in said[1]


@pytest.mark.long
def test_a_server_that_never_answers_costs_seconds_too(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        began = time.monotonic()
        handed, _, said = track(tmp_path, WANDB_API_KEY="x" * 40, WANDB_BASE_URL=url)
    assert handed < 0.5
    assert time.monotonic() - began < 30
    assert "wandb sync" in said[0]


def test_a_key_file_is_read_and_a_missing_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret\n")
    assert read_key(TrackSettings(key_file=str(tmp_path / "key"))) == "secret"
    with pytest.raises(UsageError, match=r"cannot read track.key_file .*none: No such file"):
        read_key(TrackSettings(key_file=str(tmp_path / "none")))


@pytest.mark.long
@pytest.mark.parametrize(("status", "stall_seconds"), [(401, 0), (429, 0), (500, 0), (200, 120)])
def test_a_server_that_is_not_well_costs_seconds_and_says_how_to_upload(
    status: int, stall_seconds: float, tmp_path: Path
) -> None:
    with unwell(status, stall_seconds) as (url, requests):
        handed, ended, said = track(tmp_path, WANDB_API_KEY="x" * 40, WANDB_BASE_URL=url)
    assert requests[0] == "/graphql"
    assert handed < 0.5
    assert ended < 30
    (line,) = [line for line in said if "wandb sync" in line]
    assert content_of(line).count(b"train/loss") >= 3, "each point is there to be uploaded"


@pytest.mark.long
@pytest.mark.parametrize(("status", "stall_seconds"), [(500, 0), (200, 120)])
def test_a_server_that_falls_ill_after_the_start_holds_nothing_up(
    status: int, stall_seconds: float, tmp_path: Path
) -> None:
    with unwell(status, stall_seconds, starts=True) as (url, requests):
        handed, ended, said = track(tmp_path, WANDB_API_KEY="x" * 40, WANDB_BASE_URL=url)
    assert any("file_stream" in path for path in requests), f"the run never was online: {said}"
    assert handed < 0.5
    assert ended < 30
    (line,) = said
    assert line.startswith("W&B is offline now; to upload: wandb sync ")
    assert content_of(line).count(b"train/loss") >= 3, "each point is there to be uploaded"


def test_a_service_that_is_killed_costs_no_point(tmp_path: Path) -> None:
    _, ended, said = track(tmp_path, KILLED="1")
    assert ended < 30
    before, now = said
    assert before.startswith("W&B is offline; to upload: wandb sync ")
    assert now.startswith("W&B is offline now; to upload: wandb sync ")
    content = content_of(now)
    assert all(f"loss{images}".encode() in content for images in (100, 200, 300, 400))


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user and a current folder that know nothing of W&B."""
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("variable", "value", "mode"),
    [
        ("WANDB_MODE", "offline", "offline"),
        ("WANDB_MODE", "dryrun", "offline"),
        ("WANDB_MODE", "disabled", "off"),
        ("WANDB_MODE", "online", "online"),
        ("WANDB_DISABLED", "true", "off"),
    ],
)
def test_the_variables_of_wandb_are_heeded_and_a_flag_wins(
    variable: str, value: str, mode: str, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resolved(TrackSettings()) == (TrackSettings(), "")
    monkeypatch.setenv(variable, value)
    settings, line = resolved(TrackSettings())
    assert (settings.mode, line) == (mode, f"W&B is {mode}: {variable}={value}")
    other = TrackSettings(mode="offline" if mode != "offline" else "online")
    assert resolved(other) == (
        other,
        f"W&B: track.mode = {other.mode} counts, not {variable}={value}",
    )


def test_wandb_disabled_may_say_false(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_DISABLED", "false")
    assert resolved(TrackSettings()) == (TrackSettings(), "")


def test_what_the_command_of_wandb_has_set_is_heeded(own_home: Path) -> None:
    """By W&B's own command, so that the file is where this release writes it."""
    for command, mode in (("disabled", "off"), ("offline", "offline")):
        subprocess.run([sys.executable, "-m", "wandb", command], check=True, capture_output=True)
        settings, line = resolved(TrackSettings())
        assert settings.mode == mode
        assert line == f"W&B is {mode}: mode = {command} in {own_home}/wandb/settings"
    subprocess.run([sys.executable, "-m", "wandb", "online"], check=True, capture_output=True)
    # some releases write it, others clear the entry
    assert resolved(TrackSettings())[0].mode in ("auto", "online")


def test_a_mode_that_wandb_does_not_have_is_refused(
    own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "of")
    with pytest.raises(
        UsageError,
        match="WANDB_MODE=of: not a mode of W&B: set it to online, offline or",
    ):
        resolved(TrackSettings())


def test_a_key_that_the_server_refuses_is_said(tmp_path: Path) -> None:
    with unwell(401) as (url, _):
        *_, said = track(tmp_path, WANDB_API_KEY="x" * 40, WANDB_BASE_URL=url)
    assert said[0].startswith(
        "W&B is offline (127.0.0.1 answers 401 Unauthorized); to upload: wandb sync "
    )


def test_a_server_with_a_path_is_asked_below_it_with_the_key_of_its_host(tmp_path: Path) -> None:
    with unwell(200, starts=True, below="/wandb") as (url, requests):
        host = url.removeprefix("http://")
        (tmp_path / ".netrc").write_text(f"machine {host}\nlogin user\npassword {'x' * 40}\n")
        *_, said = track(tmp_path, WANDB_BASE_URL=f"{url}/wandb")
    assert said == []
    assert any("file_stream" in path for path in requests), "it was online"


def test_the_server_that_wandb_login_has_set_is_asked(tmp_path: Path) -> None:
    with unwell(200, starts=True) as (url, requests):
        (tmp_path / ".config" / "wandb").mkdir(parents=True)
        (tmp_path / ".config" / "wandb" / "settings").write_text(f"[default]\nbase_url = {url}\n")
        *_, said = track(tmp_path, WANDB_API_KEY="x" * 40)
    assert said == []
    assert any("file_stream" in path for path in requests), "it was online"


def test_a_server_behind_a_proxy_is_reached_through_it(tmp_path: Path) -> None:
    base_url = "http://wandb.example.invalid"
    with unwell(200, starts=True) as (url, requests):  # a proxy is asked for whole addresses
        *_, said = track(tmp_path, WANDB_API_KEY="x" * 40, WANDB_BASE_URL=base_url, http_proxy=url)
    assert said == []
    assert requests[0] == "http://wandb.example.invalid/graphql"
    assert any("file_stream" in path for path in requests), "it was online"
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        proxy = f"127.0.0.1:{unused.getsockname()[1]}"
        way = f"http://user:secret@{proxy}"
        *_, said = track(tmp_path, WANDB_API_KEY="x" * 40, WANDB_BASE_URL=base_url, http_proxy=way)
    assert said[0].startswith(
        f"W&B is offline (wandb.example.invalid through the proxy {proxy} does not answer ("
    )
    assert "secret" not in said[0]
