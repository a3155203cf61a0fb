"""How Ray is started or joined: modules of the command, short socket paths, an address that
answers.
"""

import contextlib
import os
import pty
import socket
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from threading import Thread

import pytest
import torch

from tests.commands.local import up
from tests.commands.test_job import JOBS
from tests.launch.test_worker import wanted
from tests.training.learn import packed
from udl_dist.errors import ClusterError, UsageError
from udl_dist.launch import process_group, ray_options, ray_runtime
from udl_dist.runs.run_folder import RunFolder
from udl_dist.training import checkpoint

JOIN = """
import io, sys
from pathlib import Path
from udl_dist.launch import ray_runtime
from udl_dist.launch import driver
from udl_dist.experiment import load
import ray
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
flags = {"data.source": sys.argv[1], "data.size": "8", "data.channels": "1", "method.name": "ae",
         "track.mode": "off", "train.total_images": "24", "run.folder": sys.argv[2]}
try:
    driver.train(load(None, flags), io.StringIO())
except Exception as error:
    print(type(error).__name__, error)
"""


def bad_modules(folder: Path) -> Path:
    """A folder with an udl_dist, a numpy and a wandb that no one asked for."""
    (folder / "udl_dist").mkdir(parents=True)
    for file in ("udl_dist/__init__.py", "numpy.py", "wandb.py"):
        (folder / file).write_text(
            f"raise ImportError('{file} of the current folder was imported')\n"
        )
    return folder


def script(folder: Path, code: str) -> Path:
    """A program in a folder of its own, which Python puts first on its path."""
    folder.mkdir()
    (folder / "program.py").write_text(code)
    return folder / "program.py"


def udl(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The installed command: `python -m` would look for modules in the current folder."""
    command = [str(Path(sysconfig.get_path("scripts")) / "udl"), *arguments]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | environment,
        timeout=240,
        check=False,
    )


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Ray of this process is not one to join."""
    monkeypatch.setattr("ray.is_initialized", lambda: False)


def test_workers_of_somebody_elses_ray_that_import_another_udl_dist_are_refused(
    tmp_path: Path,
) -> None:
    here = bad_modules(tmp_path / "here")
    (here / "udl_dist" / "__init__.py").write_text("")
    (here / "numpy.py").unlink()
    command = [
        sys.executable,
        str(script(tmp_path / "program", JOIN)),
        str(packed(tmp_path)),
        str(tmp_path / "run"),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=here, timeout=120, check=False
    )
    assert done.stdout.startswith("ClusterError ")
    assert (
        f"imports udl_dist from {here / 'udl_dist' / '__init__.py'}, the command from "
        in done.stdout
    ), done.stdout


def test_python_m_takes_no_module_from_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text(
        "raise ImportError('numpy.py of the current folder was imported')\n"
    )
    command = [sys.executable, "-m", "udl_dist", "pack", "digits", "packed"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:8265", "ray://127.0.0.1:10001", "127.0.0.1", "head:port", "local"]
)
def test_what_is_not_the_address_of_a_head_is_refused(address: str) -> None:
    with pytest.raises(
        UsageError, match=f"address '{address}' is not the address of a Ray cluster's head: give"
    ):
        ray_runtime.start(address, verbose=False)


def test_an_address_where_no_one_is_is_refused_at_once() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(
            ClusterError, match=r"no Ray at 127.0.0.1:\d+ \(Connection refused\): is the cluster up"
        ):
            ray_runtime.start(f"127.0.0.1:{unused.getsockname()[1]}", verbose=False)


@pytest.mark.parametrize(
    ("answer", "why"), [(b"", "timed out"), (b"HTTP/1.1 400 Bad Request\r\n", "another program")]
)
def test_a_server_that_is_no_head_is_refused(
    answer: bytes, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_options, "ANSWER_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):
                connection.sendall(answer)
                while connection.recv(100):
                    pass

        Thread(target=serve, daemon=True).start()
        with pytest.raises(ClusterError, match=f"no Ray at 127.0.0.1:.*{why}"):
            ray_runtime.start(f"127.0.0.1:{server.getsockname()[1]}", verbose=False)


@pytest.mark.long
def test_each_verb_with_workers_takes_nothing_from_the_current_folder(
    trained: dict[str, Path], tmp_path: Path
) -> None:
    here = bad_modules(tmp_path / "here")
    long = tmp_path / ("long" * 20)
    long.mkdir()
    job = tmp_path / "job.toml"
    job.write_text((JOBS / "ae_digits.toml").read_text())
    search = tmp_path / "search.toml"
    search.write_text((JOBS / "search_vae_digits.toml").read_text())
    small = ["--train.epochs", "1", "--run.workers", "1"]
    for arguments in (
        ("train", str(job), *small, "--run.folder", "run"),
        (
            "search",
            str(search),
            "--search.trials",
            "2",
            "--search.budget_images",
            "4000",
            "--run.folder",
            "found",
            "--search.final_seeds",
            "1",
            "--search.evaluate",
            "false",
            "--search.export",
            "false",
        ),
        (
            "evaluate",
            str(trained["vae"]),
            "--workers",
            "1",
            "--families",
            "reconstruction",
            "--out",
            "evaluation.json",
        ),
        ("embed", str(trained["vae"]), "digits", "codes", "--workers", "1"),
    ):
        done = udl(*arguments, cwd=here, TMPDIR=str(long))
        assert done.returncode == 0, done.stderr
        assert "W&B stopped" not in done.stderr
    assert "wandb sync" in (here / "run" / "messages.log").read_text(), "W&B kept the run, offline"


@pytest.mark.long
def test_a_run_whose_terminal_is_closed_writes_a_checkpoint(tmp_path: Path) -> None:
    job = tmp_path / "job.toml"
    job.write_text(
        wanted("ae", packed(tmp_path), tmp_path / "run", train__total_images="2400000").to_toml()
    )
    process, terminal = pty.fork()
    if not process:
        os.execv(sys.executable, [sys.executable, "-m", "udl_dist", "train", str(job)])
    folder = RunFolder(tmp_path / "run")
    deadline = time.monotonic() + 90
    while not folder.points() and time.monotonic() < deadline:
        time.sleep(0.1)
    os.close(terminal)  # the whole foreground group gets SIGHUP, as when ssh ends
    _, status = os.waitpid(process, 0)
    points = folder.points()
    assert 0 < points[-1]["images"] < 2400000
    newest, *_ = sorted(checkpoint.complete(folder.checkpoints), reverse=True)
    assert int(newest.name) >= points[-1]["images"]
    assert os.waitstatus_to_exitcode(status) == 129


@pytest.mark.long
def test_a_submitted_job_takes_nothing_from_where_it_or_its_cluster_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = bad_modules(tmp_path / "here")
    monkeypatch.chdir(here)
    with up(tmp_path / "state"):
        small = ["--train.epochs", "1", "--run.workers", "1", "--run.folder", str(tmp_path / "run")]
        done = udl("submit", str(JOBS / "ae_digits.toml"), *small, "--follow", cwd=here)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "complete after" in done.stdout


def test_the_interface_of_an_address_is_found_by_the_address() -> None:
    assert process_group.interface_of("127.0.0.1") == "lo"
    assert process_group.interface_of("192.0.2.77") == ""  # reserved for examples
    assert process_group.interface_of("") == process_group.interface_of("no address") == ""


def test_workers_meet_at_a_free_port_of_their_node(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    for address, host in (("192.0.2.77", "192.0.2.77"), ("2001:db8::7", "[2001:db8::7]")):
        monkeypatch.setattr(ray.util, "get_node_ip_address", lambda address=address: address)
        url, _, port = process_group.meeting_place().rpartition(":")
        assert url == f"tcp://{host}"
        with socket.create_server(("", int(port))):
            pass


@pytest.mark.skipif(torch.cuda.is_available(), reason="PyTorch has a GPU here")
def test_a_gpu_that_pytorch_cannot_use_is_refused_with_what_to_do() -> None:
    with pytest.raises(RuntimeError, match=r"PyTorch .* cannot use it \(it .*\): install a build"):
        process_group.refuse_unusable_gpu()
