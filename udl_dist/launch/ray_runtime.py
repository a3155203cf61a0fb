"""Starts a private Ray or joins a cluster, and ends what it started."""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import os
import secrets
import shutil
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from udl_dist.errors import ClusterError
from udl_dist.launch import nodes, ray_options
from udl_dist.launch.process_reaper import ProcessReaper
from udl_dist.launch.recovery import one_line

START_SECONDS = 60.0  # a start of Ray, and one try to place workers
POLL_SECONDS = 0.2
# Read by Ray's own processes, too. What the user has set counts instead.
ENVIRONMENT = {
    # 15 by default: anything else on the machine would starve the workers.
    "RAY_worker_niceness": "0",
    # A report of a checkpoint waits for this poll: with 2 s, the default, 12 reports took 22 s.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": f"{START_SECONDS:g}",
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": f"{START_SECONDS:g}",  # ten minutes by default
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process whose notices no worker reads
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # with it, lines appear twice if output is a file
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths stay what they are in the driver
    "RAY_USAGE_STATS_ENABLED": "0",  # no usage report is sent
    "RAY_DISABLE_IMPORT_WARNING": "1",
}
_reapers: list[ProcessReaper] = []  # of the Ray that this process started: one or none


def start(address: str, verbose: bool, meanwhile: Callable[[], None] = lambda: None) -> bool:
    """Join the cluster at `address` or start a private Ray; return whether `end` has to end it.

    The private one opens no dashboard, requires a token that only this process has, and listens on
    loopback unless Ray was imported before. A Ray that is initialised already is left running.
    `meanwhile` runs during the start of Ray's processes, which is mostly waiting: for imports.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # A session of somebody else's program, or the one cluster of all tests.
    if (known := sys.modules.get("ray")) and known.is_initialized():
        nodes.refuse_other_modules()
        return False
    if address:
        ray_options.refuse_silent(address)
    # Ray is imported within: it reads some of its environment at that moment.
    with warnings.catch_warnings(), contextlib.nullcontext() if address else _private_settings():
        warnings.simplefilter("ignore")
        import ray

        options: dict[str, Any] = {
            # "local": by itself Ray would join one that happens to run on this machine.
            "address": address or "local",
            "job_config": ray_options.job_config(),
            "log_to_driver": verbose,
            "logging_level": logging.INFO if verbose else logging.ERROR,
        }
        if not address:
            options |= {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
            options |= {"_temp_dir": folder} if (folder := ray_options.short_folder()) else {}
        try:
            # The reaper watches a private Ray only: a cluster outlives this process.
            with ray_options.hangups_blocked(), contextlib.nullcontext() if address else _reaped():
                threading.Thread(target=meanwhile, daemon=True).start()
                ray.init(**options, namespace="udl-dist")
        except Exception as error:  # Ray raises many kinds here
            end()
            raise ClusterError(
                f"no Ray at {address or 'this machine'}: {one_line(error)}"
            ) from None
    if not verbose:
        _silence_ray()  # after `init`, which sets up Ray's loggers
    if address:  # the processes of a private Ray have the modules of this one
        try:
            nodes.refuse_other_modules()
        except ClusterError:
            end()
            raise
    return True


@contextlib.contextmanager
def _private_settings() -> Iterator[None]:
    """Environment of a private Ray, while it is imported and started."""
    # Only meanwhile, as the next Ray of this process may be a cluster with a token of its own.
    own = {"RAY_AUTH_TOKEN_PATH": str(_token_file())}
    # Ray then takes loopback for this machine's address: no other one has to reach it.
    own["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    if "ray" not in sys.modules:  # read at the import; afterwards Ray's own default has to do
        own["RAY_AUTH_MODE"] = os.environ.get("RAY_AUTH_MODE", "token")
    before = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@functools.cache  # as Ray does: one process, one token
def _token_file() -> Path:
    """A new token, readable by its owner; every user of the machine may read the one Ray makes."""
    folder = tempfile.mkdtemp(prefix="udl-token-")  # 0700
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    file = Path(folder) / "token"
    file.touch(0o600)  # before the token is in it; Ray itself would make it 0644
    file.write_text(secrets.token_hex(32))
    return file


def _reaped() -> contextlib.AbstractContextManager[None]:
    """While Ray starts: marks its processes, so that none outlives this one."""
    _reapers.append(ProcessReaper())
    return _reapers[-1].marking()


def _silence_ray() -> None:
    """Stop Ray from printing errors of dead workers to stdout, into the output of --json.

    The run reports them itself. Ray has no public way to disable this.
    """
    from ray._private import worker

    if hasattr(worker, "print_to_stdstream"):
        worker.print_to_stdstream = lambda *_, **__: None
    for name in ("ray", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)


def end() -> None:
    """End a private Ray, or leave the cluster that was joined."""
    import ray

    ray.shutdown()
    # After the shutdown, so that the reaper finds only what has not ended by itself.
    while _reapers:
        _reapers.pop().close()
