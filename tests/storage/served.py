"""A real S3-speaking server on this machine with one bucket, `bucket`; where it listens is in the
environment.
"""

import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
