"""Parses URIs of buckets and URLs, and decides which schemes may be read.

A URI of a bucket is literal, as for `aws s3`, with options after a question mark:
endpoint_override, region, scheme and anonymous. The query of a URL may be a signature, so no
message shows it. Credentials come from the environment or the SDK's files, never from a URI.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

from udl_dist.core.config_schema import as_path
from udl_dist.errors import UsageError

BUCKETS = ("s3", "gs", "az")
WEB = ("http", "https")  # read only, and nothing there can be listed
OPTIONS = ("endpoint_override", "region", "scheme", "anonymous")
SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*):(?=//)|^(pipe|hf|gopen):", re.IGNORECASE)
ALLOWED = "s3://, gs://, az://, http:// or https://"
NO_CREDENTIALS = (
    "a URI must not hold credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or"
    " AWS_PROFILE"
)


@dataclass(frozen=True)
class Uri:
    """A parsed URI; `bucket` is the host where it is a URL."""

    scheme: str
    bucket: str
    path: str  # begins with the bucket
    query: str

    @property
    def name(self) -> str:
        """The URI without options or signature: for messages."""
        return f"{self.scheme}://{self.path}"

    @property
    def key(self) -> str:
        """The name of the object in its bucket or on its host, decoded for URLs."""
        key = self.path.partition("/")[2].strip("/")
        return unquote(key) if self.is_web else key

    @property
    def is_web(self) -> bool:
        return self.scheme in WEB

    @property
    def options(self) -> dict[str, str]:
        """The options of a bucket."""
        # The query of a URL is the server's business.
        parts = [] if self.is_web else [part for part in self.query.split("&") if part]
        return {name: value for name, _, value in sorted(part.partition("=") for part in parts)}

    def at(self, path: str) -> str:
        """Another path, bucket included, with the same options or signature."""
        return f"{self.scheme}://{path}" + (f"?{self.query}" if self.query else "")


def is_remote(source: str) -> bool:
    """Whether a source is a URI that may be read."""
    return scheme_of(source) in BUCKETS + WEB


def is_web(source: str) -> bool:
    """Whether a source is a URL: it can be read, but not listed or written."""
    return scheme_of(source) in WEB


def scheme_of(source: str) -> str:
    """The scheme of a source in lower case; "" for a path, also as a file: URI."""
    found = SCHEME.match(source)
    # pipe:, hf: and gopen: are webdataset's, and need no slashes.
    scheme = (found[1] or found[2]).lower() if found else ""
    return "" if scheme == "file" else scheme


def refuse_scheme(source: str) -> None:
    """Raise UsageError if a source has a scheme that is not supported."""
    scheme = scheme_of(source)
    # It ran a shell command, which a job file from elsewhere must not.
    if scheme == "pipe":
        raise UsageError(f"pipe: was removed: download the shards, or give a URI of {ALLOWED}")
    if scheme and not is_remote(source):
        raise UsageError(f"data from {scheme}: is not read: give a path, or a URI of {ALLOWED}")


def refuse_web(source: str, setting: str) -> None:
    """Raise UsageError if the place to write is a URL."""
    if is_web(source):
        raise UsageError(
            f"{setting} {name_of(source)!r} cannot be written: give a path, or a URI of s3://,"
            " gs:// or az://"
        )


def name_of(path: str) -> str:
    """A path, or a URI without its options or signature: for messages."""
    return parse(path).name if is_remote(path) else path


def public(value: Any) -> Any:
    """Settings that may be published: URLs without their query, which may be a signature."""
    if isinstance(value, Mapping):
        return {name: public(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [public(each) for each in value]
    return name_of(value) if isinstance(value, str) and is_web(value) else value


def absolute(source: str) -> str:
    """A path made absolute, each of several that `::` joins; URIs, "" and "digits" stay."""
    if source in ("", "digits"):
        return source
    # A file may have `::` in its name: what exists is one source.
    parts = source.split("::") if "::" in source and not as_path(source).exists() else [source]
    return "::".join(part if scheme_of(part) else str(as_path(part)) for part in parts)


def joined(uri: str, name: str) -> str:
    """The URI of `name` directly below a prefix, with the prefix's options."""
    prefix = parse(uri)
    # Names in buckets are literal, those in URLs are percent-encoded.
    return prefix.at(f"{prefix.path.rstrip('/')}/{quote(name) if prefix.is_web else name}")


def split(path: str) -> tuple[str, str]:
    """The folder or prefix of a path or URI, and its last name."""
    if not is_remote(path):
        folder, _, name = path.rpartition("/")
        return folder, name
    uri = parse(path)
    folder, _, name = uri.path.rpartition("/")
    return uri.at(folder), name


def sibling(path: str, name: str) -> str:
    """The path or URI of `name` in the same folder as `path`."""
    folder = split(path)[0]
    return joined(folder, name) if is_remote(path) else f"{folder}/{name}"


def parse(uri: str) -> Uri:
    """Parse a URI; raise UsageError for another scheme, an unknown option or credentials."""
    refuse_scheme(uri)
    if not is_remote(uri):
        raise UsageError(f"{uri!r} is not a URI of storage: {ALLOWED}")
    scheme, _, rest = uri.partition("://")
    scheme = scheme.lower()
    # A URL's query begins at its first question mark, a bucket's options at the last one.
    path, mark, query = rest.partition("?") if scheme in WEB else rest.rpartition("?")
    # In a bucket a question mark may be part of an object's name.
    if not mark or (scheme in BUCKETS and "=" not in query):
        path, query = rest, ""
    found = Uri(scheme, path.partition("/")[0], path, query)
    # user:password@host, also as an endpoint_override.
    if "@" in found.bucket or (scheme in BUCKETS and "@" in query):
        raise UsageError(NO_CREDENTIALS)
    for name in found.options:
        if name not in OPTIONS:
            raise UsageError(
                f"unknown option {name} in {found.name}: there are {', '.join(OPTIONS)}"
            )
    if not found.bucket:
        raise UsageError(f"{found.name!r} names no bucket or host")
    return found
