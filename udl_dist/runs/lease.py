"""Who holds a run in object storage: an object that its owner writes again and again while it
lives.

Storage has no lock that the system releases, so another run takes over a lease that is not renewed;
on the machine of its owner that is known at once. Each writing names the one that it replaces, so
of two runs that start at the same moment one is refused.
"""

from __future__ import annotations

import json
import os
import socket
import time
import uuid

from udl_dist.errors import UsageError
from udl_dist.runs.heartbeat import machine, started
from udl_dist.runs.run_folder import RunFolder
from udl_dist.storage import objects
from udl_dist.storage.client import NO_CONDITIONS, ConflictError
from udl_dist.storage.uris import name_of

RENEW_SECONDS = 10.0
STALE_SECONDS = 25.0  # without a renewal
LOOK_SECONDS = 1.0  # between looks at a lease that may be stale


class Lease:
    """The lease at `uri`, for the process that takes it."""

    def __init__(self, uri: str, folder: RunFolder) -> None:
        self._uri, self._folder = uri, folder
        self._token = uuid.uuid4().hex
        self._renewals, self._next = 0, 0.0

    def take(self) -> None:
        """Take the lease; raise UsageError if another run that lives has it, or takes it first."""
        held, seen = self._read()
        if held and self._lives(held):
            raise _in_use(held)
        try:
            self._write(seen)
        except ConflictError:
            raise _in_use(self._read()[0]) from None
        try:
            objects.write_over(self._uri, self._content(), None)  # it exists, so this must fail
        except ConflictError:
            return
        raise UsageError(f"{name_of(self._uri)!r}: {NO_CONDITIONS}")

    def renew(self) -> bool:
        """Show that the owner lives, where that is due; whether the lease is still its own."""
        if time.monotonic() < self._next:
            return True
        held, seen = self._read()
        if held and held["token"] != self._token:
            return False
        try:
            self._write(seen)
        except ConflictError:  # by another run, or by an attempt of our own whose answer was lost
            return self._is_ours()
        return True

    def drop(self) -> None:
        """Give the lease back, if it is ours."""
        if self._is_ours():
            objects.remove(self._uri)

    def _is_ours(self) -> bool:
        return self._read()[0].get("token") == self._token

    def _lives(self, held: dict[str, str]) -> bool:
        if held["machine"] == machine():
            return started(int(held["process"])) == held["started"]
        who = f"whether {held['owner']} still holds the run folder"
        self._folder.say(f"looking for {STALE_SECONDS:g} s {who}")
        deadline = time.monotonic() + STALE_SECONDS
        while time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS)
            now, _ = self._read()
            if now != held:
                return bool(now)
        return False

    def _write(self, seen: objects.Version | None) -> None:
        self._renewals += 1
        objects.write_over(self._uri, self._content(), seen)
        self._next = time.monotonic() + RENEW_SECONDS

    def _content(self) -> bytes:
        return json.dumps(
            {
                "token": self._token,
                "owner": f"process {os.getpid()} on {socket.gethostname()}",
                "machine": machine(),
                "process": str(os.getpid()),
                "started": started(os.getpid()),
                "renewals": str(self._renewals),
            }
        ).encode()

    def _read(self) -> tuple[dict[str, str], objects.Version | None]:
        """The content of the lease, empty if it cannot be read, and its version."""
        content, seen = objects.read_versioned(self._uri)
        try:
            return dict(json.loads(content)), seen
        except (ValueError, TypeError):
            return {}, seen


def _in_use(held: dict[str, str]) -> UsageError:
    owner = held.get("owner", "another process")
    return UsageError(
        f"the run folder is in use by {owner}: wait, stop it, or choose another --run.folder"
    )
