"""Ray's job API, and here only: a job sent, looked at, followed and stopped."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from udl_dist.errors import ClusterError
from udl_dist.submitting.door import ADDRESSES, TOKEN_FILE, Door

STOP_SECONDS = 120  # for a checkpoint, before Ray kills
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
AGENT_SECONDS = 30.0  # for a cluster that has just been started
POLL_SECONDS = 0.5
TRIES = 5  # to follow on after the connection broke


@dataclass(frozen=True)
class State:
    """How a job stands: Ray's word for it, and the exit code of its command once it has ended."""

    name: str
    status: str
    exit_code: int | None
    message: str
    started_ms: int

    @property
    def ended(self) -> bool:
        return self.status in ENDED


class Client:
    """The jobs of the cluster behind a door."""

    def __init__(self, door: Door) -> None:
        for name in ADDRESSES:  # Ray would let them win over the address given
            os.environ.pop(name, None)
        os.environ["RAY_AUTH_MODE"] = "token" if door.closed else "disabled"
        if door.closed and door.token_file and not os.environ.get("RAY_AUTH_TOKEN"):
            os.environ[TOKEN_FILE] = str(door.token_file)
        try:
            from ray.job_submission import JobSubmissionClient

            logging.getLogger("ray").setLevel(logging.ERROR)
            for name in ("sdk", "dashboard_sdk"):
                logging.getLogger(f"ray.dashboard.modules.{'job.sdk' if name == 'sdk' else name}").setLevel("ERROR")
            with _told(door.address):
                self._client = JobSubmissionClient(door.address)
        except ImportError:
            raise ClusterError("Ray's job client is not installed: pip install 'udl-dist[cluster]'") from None
        self._address = door.address

    def submit(self, name: str, command: str, folder: Path) -> None:
        """Start a command in a copy of `folder`; raise ClusterError if there is a job of that name."""
        environment = {"working_dir": str(folder), "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}}
        deadline = time.monotonic() + AGENT_SECONDS
        while True:
            try:
                with _told(self._address):
                    self._client.submit_job(entrypoint=command, submission_id=name, runtime_env=environment)
                return
            except ClusterError as error:
                if "No available agent" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(POLL_SECONDS)

    def jobs(self) -> list[State]:
        """All jobs of ours, the oldest first."""
        with _told(self._address):
            listed = self._client.list_jobs()
        found = [_state(each) for each in listed if (each.submission_id or "").startswith("udl-")]
        return sorted(found, key=lambda state: state.started_ms)

    def look(self, name: str) -> State:
        with _told(self._address):
            return _state(self._client.get_job_info(name))

    def stop(self, name: str) -> None:
        """Send the command SIGTERM; Ray kills it if it has not ended in time for a checkpoint."""
        with _told(self._address):
            self._client.stop_job(name)

    def forget(self, name: str) -> None:
        """Take a job that has ended off the list."""
        with _told(self._address):
            self._client.delete_job(name)

    def logs(self, name: str) -> str:
        """All that the command has printed."""
        with _told(self._address):
            return str(self._client.get_job_logs(name))

    def follow(self, name: str) -> Iterator[str]:
        """What the command prints, until it ends; goes on where it was after a connection broke."""
        shown, tries = 0, 0
        while tries < TRIES:
            seen = 0
            with contextlib.suppress(Exception):  # any kind, of several libraries: asked again below
                for text in self._tail(name):
                    seen += len(text)
                    if seen > shown:
                        yield text[-(seen - shown) :]
                        shown, tries = seen, 0
            if self.look(name).ended:
                rest = self.logs(name)[shown:]
                if rest:
                    yield rest
                return
            tries += 1
            time.sleep(POLL_SECONDS)
        raise ClusterError(f"{self._address} no longer sends what {name} prints; it may go on: udl status {name}")

    def _tail(self, name: str) -> Iterator[str]:
        loop = asyncio.new_event_loop()
        pieces = self._client.tail_job_logs(name)
        try:
            while True:
                try:
                    yield loop.run_until_complete(pieces.__anext__())
                except StopAsyncIteration:
                    return
        finally:
            loop.run_until_complete(pieces.aclose())
            loop.close()

    def wait(self, name: str, seconds: float) -> State:
        """How a job ended, or how it stands after so long."""
        deadline = time.monotonic() + seconds
        while not (state := self.look(name)).ended and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        return state


@contextlib.contextmanager
def _told(address: str) -> Iterator[None]:
    """What Ray raises, as one line."""
    try:
        yield
    except (RuntimeError, ConnectionError, OSError, ValueError) as error:
        said = " ".join(str(error).split())
        raise ClusterError(f"{address}: {said[:300]}") from None


def _state(details: Any) -> State:
    status = getattr(details.status, "value", details.status)
    code = details.driver_exit_code
    return State(details.submission_id or "", str(status), int(code) if code is not None else None,
                 details.message or "", int(details.start_time or 0))  # fmt: skip
