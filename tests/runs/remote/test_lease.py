"""The lease of a run folder in object storage: one run alone gets it, however many ask at the same
moment.
"""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.storage.faulty import Faulty
from tests.storage.served import served
from udl_dist.errors import DataError, UsageError
from udl_dist.runs.lease import Lease
from udl_dist.runs.run_folder import RunFolder
from udl_dist.storage import objects

RUNS, ROUNDS = 6, 10
GONE = {"token": "x", "owner": "process 7", "machine": "another", "process": "7", "started": "1"}


@pytest.mark.parametrize("before", ["nothing", "a lease of a run that is gone"])
def test_of_many_runs_that_start_at_once_one_gets_the_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    monkeypatch.setattr(Lease, "_is_alive", lambda self, held: held["token"] != "x")
    start, looked = threading.Barrier(RUNS), threading.local()
    real = Lease._read

    def slow_read(lease: Lease) -> Any:
        """In the first round most runs are slow between their first look and their writing."""
        found = real(lease)
        time.sleep(looked.__dict__.pop("seconds", 0.0))
        return found

    monkeypatch.setattr(Lease, "_read", slow_read)
    folder = RunFolder(tmp_path)

    def takes(lease: Lease, seconds: float) -> bool:
        looked.seconds = seconds
        start.wait()
        try:
            lease.acquire()
        except UsageError as error:
            assert "is in use by process" in str(error)
            return False
        return True

    with served(), ThreadPoolExecutor(RUNS) as pool:
        for number in range(ROUNDS):
            uri = f"s3://bucket/race/{before}/{number}.json"
            if before != "nothing":
                objects.write(uri, json.dumps(GONE).encode())
            runs = [Lease(uri, folder) for _ in range(RUNS)]
            delays = [0.0 if number else 0.4 * place for place in range(RUNS)]
            holds = list(pool.map(takes, runs, delays))
            assert sum(holds) == 1
            runs[holds.index(True)].release()
            assert not objects.exists(uri)


def test_a_renewal_whose_answer_was_lost_is_none_of_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("udl_dist.runs.lease.RENEW_SECONDS", 0.0)
    real = objects.write_over

    def twice(uri: str, content: bytes, seen: objects.Version | None) -> None:
        real(uri, content, seen)
        real(uri, content, seen)

    with served():
        lease = Lease("s3://bucket/renewed.json", RunFolder(tmp_path))
        lease.acquire()
        monkeypatch.setattr(objects, "write_over", twice)
        assert lease.renew() and lease.renew()
        objects.write("s3://bucket/renewed.json", json.dumps(GONE).encode())
        assert not lease.renew()


@pytest.mark.parametrize("always", ["", "501"])
def test_storage_without_conditional_writes_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, always: str
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    with Faulty({}) as server:  # ignores conditions; with the fault, refuses them
        server.put_fault = always
        with pytest.raises((UsageError, DataError)) as raised:
            Lease(server.uri("bucket/lease.json"), RunFolder(tmp_path)).acquire()
        assert "s3://bucket/lease.json" in str(raised.value)
        assert "does not support conditional writes (If-None-Match)" in str(raised.value)
