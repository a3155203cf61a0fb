"""Who holds a run in object storage: an object that its owner writes again and again while it
lives.

Storage gives no lock that the system lets go, so a lease that is not renewed is taken over; on the
machine of its owner that is known at once. Two starts within the same second are told apart by
whose writing stays.
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

RENEW_SECONDS = 10.0
STALE_SECONDS = 25.0  # without a renewal
SETTLE_SECONDS = 1.0  # until it is seen who wrote last


class Lease:
    """The lease at `uri`, for the process that takes it."""

    def __init__(self, uri: str, folder: RunFolder) -> None:
        self._uri, self._folder = uri, folder
        self._token = uuid.uuid4().hex
        self._renewals, self._next = 0, 0.0

    def take(self) -> None:
        """Take the lease; raise UsageError if it is another's who lives."""
        held = self._read()
        if held and self._lives(held):
            raise UsageError(
                f"the run folder is in use by {held['owner']}: wait, stop it, or choose another "
                "--run.folder"
            )
        self._write()
        if held:
            time.sleep(SETTLE_SECONDS)
        if (now := self._read()).get("token") != self._token:
            raise UsageError(
                f"the run folder was taken in the same moment by {now.get('owner')}: wait, or"
                " choose another --run.folder"
            )

    def renew(self) -> bool:
        """Show that the owner lives, where that is due; whether the lease is still its own."""
        if time.monotonic() < self._next:
            return True
        if self._read().get("token", self._token) != self._token:
            return False
        self._write()
        return True

    def drop(self) -> None:
        """Give the lease back, if it is ours."""
        if self._read().get("token") == self._token:
            objects.remove(self._uri)

    def _lives(self, held: dict[str, str]) -> bool:
        if held["machine"] == machine():
            return started(int(held["process"])) == held["started"]
        self._folder.say(
            f"looking for {STALE_SECONDS:g} s whether {held['owner']} still holds the run folder"
        )
        deadline = time.monotonic() + STALE_SECONDS
        while time.monotonic() < deadline:
            time.sleep(SETTLE_SECONDS)
            if (now := self._read()) != held:
                return bool(now)
        return False

    def _write(self) -> None:
        self._renewals += 1
        who = {
            "token": self._token,
            "owner": f"process {os.getpid()} on {socket.gethostname()}",
            "machine": machine(),
            "process": str(os.getpid()),
            "started": started(os.getpid()),
            "renewals": str(self._renewals),
        }
        objects.write(self._uri, json.dumps(who).encode())
        self._next = time.monotonic() + RENEW_SECONDS

    def _read(self) -> dict[str, str]:
        """What the lease says; empty if there is none, or none that can be read."""
        try:
            return dict(json.loads(objects.read(self._uri))) if objects.stamp(self._uri) else {}
        except (ValueError, TypeError):
            return {}
