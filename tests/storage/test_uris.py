"""URIs: an allow-list of schemes, options that are known, and no credential that could end up in a
log.
"""

import pytest

from udl_dist.errors import UsageError
from udl_dist.storage.uris import (
    is_remote,
    joined,
    name_of,
    parse,
    public,
    refuse_scheme,
    refuse_web,
)


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/a.tar",
        "S3://bucket/a.tar",
        "gs://bucket/{000..009}.tar",
        "az://container/a.tar",
        "https://host/a.tar",
        "HTTP://host:80/a.tar?sig=x",
    ],
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
    "uri", ["pipe:aws s3 cp s3://b/a.tar -", "hf://x/y", "ftp://h/a.tar", "PIPE:cat x", "s3a://b"]
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
    assert parse(inside).options == parse(prefix).options != {}
    assert parse("s3://bucket/what?.tar").key == "what?.tar"


def test_a_signature_stays_with_its_url_and_out_of_names() -> None:
    url = "https://host/a%20b.tar?signature=x/y@z"
    assert name_of(url) == "https://host/a%20b.tar" and parse(url).key == "a b.tar"
    assert public({"a": [url], "b": "s3://b/c?region=x"}) == {
        "a": [name_of(url)],
        "b": "s3://b/c?region=x",
    }
    assert parse(url).at("host/c.tar") == "https://host/c.tar?signature=x/y@z"


def test_what_is_removed_or_cannot_be_written_names_what_to_use_instead() -> None:
    with pytest.raises(
        UsageError, match="pipe: was removed: download the shards, or give a URI of s3://"
    ):
        refuse_scheme("pipe:cat x")
    with pytest.raises(
        UsageError,
        match="run.folder 'https://h/run' cannot be written: give a path, or a URI of s3",
    ):
        refuse_web("https://h/run?signature=s3cr3t", "run.folder")


@pytest.mark.parametrize(
    "uri",
    [
        "s3://AKIA1:s3cr3t@bucket/a.tar",
        "https://AKIA1:s3cr3t@host/a.tar",
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
