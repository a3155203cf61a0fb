"""A real S3-speaking server on this machine with one bucket, `bucket`; where it listens is in the
environment.
"""

import importlib
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from udl_dist.storage.objects import upload


@contextmanager
def served() -> Iterator[str]:
    """Serve while the context lasts; give the endpoint."""
    moto = pytest.importorskip(
        "moto.server", reason="object storage is tested against moto: pip install 'moto[server]'"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        # S3 looks and writes in one; moto does so one after the other, in many threads, so that two
        # conditional writes could both succeed on a busy machine.
        response = importlib.import_module("moto.s3.responses").S3Response
        writing, put_object = threading.Lock(), response.put_object

        def one_at_a_time(self: Any) -> Any:
            with writing:
                return put_object(self)

        patch.setattr(response, "put_object", one_at_a_time)
        server = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        server.start()
        endpoint = "http://%s:%s" % server.get_host_and_port()  # noqa: UP031
        patch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
        # As a person would with curl: our own code never makes a bucket.
        urllib.request.urlopen(urllib.request.Request(f"{endpoint}/bucket", method="PUT")).close()
        yield endpoint
        server.stop()


def put(folder: Path, prefix: str) -> str:
    """Copy the tars of a folder below a prefix; give its URI."""
    for path in sorted(folder.glob("*.tar")):
        upload(path, f"s3://bucket/{prefix}/{path.name}")
    return f"s3://bucket/{prefix}"
