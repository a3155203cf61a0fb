"""The output of a command, read from start to end; what it ends with is looked at, and it never
outlives its reader.

The command is whatever the user wrote behind `pipe:`, run by the shell as webdataset runs it. Who
allows that is asked elsewhere.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import tempfile

from udl_dist.errors import DataError
from udl_dist.storage.fetching import Limits

SHOWN = 120  # characters of a command or its last words in a message


class Pipe:
    """The bytes that a command writes."""

    def __init__(self, command: str, limits: Limits) -> None:
        short = command if len(command) <= SHOWN else command[:SHOWN] + "…"
        self.name, self._limits, self._taken, self._ended = f"pipe:{short}", limits, 0, False
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the pipe)
        # A session of its own, so that all of a pipeline can be ended together.
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._said,
            start_new_session=True,
        )
        assert self._process.stdout is not None, "stdout was asked for"
        self._out = self._process.stdout

    def read(self, size: int, /) -> bytes:
        """At least one byte, at most `size`, none at the end; raise DataError if it stalls or ends
        with an error.
        """
        if self._ended:
            return b""
        seconds = self._limits.stall_seconds if self._taken else self._limits.request_seconds
        waiting = select.poll()
        waiting.register(self._out, select.POLLIN)
        if not waiting.poll(seconds * 1000):
            raise DataError(
                f"{self.name!r} gave no byte for {seconds:g} s, after {self._taken}: run it by"
                f" hand, or raise data.storage.{'stall' if self._taken else 'request'}_seconds"
            )
        part = os.read(self._out.fileno(), size)
        self._taken += len(part)
        if not part:
            self._end()
        return part

    def close(self) -> None:
        """End the command, if it has not, and all that it has started."""
        if self._process.returncode is None:  # else the number may be another's by now
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._out.close()
        self._said.close()

    def _end(self) -> None:
        """Wait for the exit code, which alone says whether the output is whole."""
        self._ended = True
        try:
            code = self._process.wait(self._limits.stall_seconds)
        except subprocess.TimeoutExpired:
            raise DataError(
                f"{self.name!r} closed its output and does not end: run it by hand"
            ) from None
        if code:
            how = f"with exit code {code}" if code > 0 else f"by signal {-code}"
            raise DataError(
                f"{self.name!r} ended {how} after {self._taken} bytes ({self._last_words()}): "
                "run it by hand"
            )

    def _last_words(self) -> str:
        self._said.seek(max(0, self._said.seek(0, os.SEEK_END) - 4096))
        lines = [
            line
            for line in self._said.read().decode("utf-8", "replace").splitlines()
            if line.strip()
        ]
        text = lines[-1].strip()[:SHOWN] if lines else "it said nothing"
        return "".join(letter if letter.isprintable() else "?" for letter in text)
