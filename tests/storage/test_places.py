"""URIs: an allow-list of schemes, options that are known, and no credential that could end up in a
log.
"""

from __future__ import annotations

import pytest

from udl_dist.errors import UsageError
from udl_dist.storage.places import is_remote, joined, name_of, parse, refuse_scheme


@pytest.mark.parametrize(
    "uri", ["s3://bucket/a.tar", "S3://bucket/a.tar", "gs://bucket/{000..009}.tar"]
)
def test_object_storage_is_remote(uri: str) -> None:
    assert is_remote(uri)
    refuse_scheme(uri)


@pytest.mark.parametrize(
    "path", ["digits", "/data/a.tar", "shards/{000..009}.tar", "C:/x.tar", "a:b.tar", ""]
)
def test_paths_are_not_remote_and_not_refused(path: str) -> None:
    assert not is_remote(path)
    refuse_scheme(path)


@pytest.mark.parametrize(
    "uri",
    [
        "pipe:aws s3 cp s3://b/a.tar -",
        "hf://x/y",
        "ftp://h/a.tar",
        "http://h/a.tar",
        "https://h/a.tar",
        "PIPE:cat x",
        "s3a://b",
    ],
)
def test_every_other_scheme_is_refused_by_name(uri: str) -> None:
    assert not is_remote(uri)
    for refuse in (refuse_scheme, parse):
        with pytest.raises(UsageError, match=uri.partition(":")[0].lower() + ":"):
            refuse(uri)


def test_options_stay_with_every_uri_of_a_prefix_and_out_of_names() -> None:
    prefix = "s3://bucket/some/?region=eu-west-1&endpoint_override=http://host:9000"
    inside = joined(prefix, "index.udl")
    assert name_of(inside) == "s3://bucket/some/index.udl"
    assert parse(inside).options == parse(prefix).options != ()
    assert parse("s3://bucket/what?.tar").path == "bucket/what?.tar"


@pytest.mark.parametrize(
    "uri",
    [
        "s3://AKIA1:s3cr3t@bucket/a.tar",
        "s3://bucket/a.tar?secret_key=s3cr3t",
        "s3://bucket/a.tar?endpoint_override=http://AKIA1:s3cr3t@host",
    ],
)
def test_credentials_in_a_uri_are_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse(uri)
    assert "s3cr3t" not in str(raised.value) and "AKIA1" not in str(raised.value)


@pytest.mark.parametrize("uri", ["s3://", "s3:///a.tar", "bucket/a.tar"])
def test_what_names_no_bucket_is_refused(uri: str) -> None:
    with pytest.raises(UsageError):
        parse(uri)
