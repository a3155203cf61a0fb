"""The lease of a run in object storage: an object that its owner renews while it lives.

Storage has no lock that is released with its process, so another run may acquire a lease that is
not renewed; on the owner's machine, as soon as its process has ended. Each write is conditional on
the one before, so that of two runs that start at the same moment one is refused.
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
STALE_SECONDS = 25.0  # without a renewal: two in a row may fail
LOOK_SECONDS = 1.0  # between reads of a lease that may be stale


class Lease:
    """The lease at `uri`, for this process."""

    def __init__(self, uri: str, folder: RunFolder) -> None:
        self._uri, self._folder = uri, folder
        self._token = uuid.uuid4().hex
        self._renewals, self._next = 0, 0.0

    def acquire(self) -> None:
        """Acquire the lease; raise UsageError if a live run has it, or is quicker."""
        # 1. Is there a live owner?
        held, seen = self._read()
        if held and self._is_alive(held):
            raise _in_use(held)
        # 2. Write over exactly the version that was judged; a quicker run has changed it.
        try:
            self._write(seen)
        except ConflictError:
            raise _in_use(self._read()[0]) from None
        # 3. A service without conditional writes would accept this one, though the lease exists:
        # there the second step has excluded no other run.
        try:
            objects.write_over(self._uri, self._content(), None)
        except ConflictError:
            return
        raise UsageError(f"{name_of(self._uri)!r}: {NO_CONDITIONS}")

    def renew(self) -> bool:
        """Renew the lease if that is due; return whether this process still holds it."""
        if time.monotonic() < self._next:
            return True
        held, seen = self._read()
        # An absent or damaged lease is written again: no other run has claimed it.
        if held and held["token"] != self._token:
            return False
        try:
            self._write(seen)
        except ConflictError:  # with another run, or with our own write whose answer was lost
            return self._is_held()
        return True

    def release(self) -> None:
        """Delete the lease, if this process holds it."""
        if self._is_held():
            objects.remove(self._uri)

    def _is_held(self) -> bool:
        return self._read()[0].get("token") == self._token

    def _is_alive(self, held: dict[str, str]) -> bool:
        # On this machine the process itself is looked for: a killed run resumes without waiting.
        if held["machine"] == machine():
            return started(int(held["process"])) == held["started"]
        who = f"whether {held['owner']} still holds the run folder"
        self._folder.say(f"watching for {STALE_SECONDS:g} s {who}")
        deadline = time.monotonic() + STALE_SECONDS
        while time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS)
            now, _ = self._read()
            # Any change is a sign of life. Times in it would not do: two clocks may differ.
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
                # Makes each renewal another content, as the run that watches compares contents.
                "renewals": str(self._renewals),
            }
        ).encode()

    def _read(self) -> tuple[dict[str, str], objects.Version | None]:
        """The content of the lease, empty if it is not valid, and its version."""
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
