"""Where an object lies: its URI taken apart, and which schemes are allowed. Opens nothing.

A URI is taken literally, as `aws s3` takes it, with options behind a question mark:
endpoint_override, region, scheme and anonymous. Credentials come from the environment or the SDK's
files, never from a URI.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from udl_dist.errors import UsageError

SCHEMES = ("s3", "gs")
# read from start to end, if at all: nobody can go back in them
SEQUENTIAL = ("http", "https", "pipe")
LOST = (
    "exact order, resume within an epoch, checksums and equal batches at other world sizes are not"
    " promised"
)
OPTIONS = ("endpoint_override", "region", "scheme", "anonymous")
SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*):(?=//)|^(pipe|hf|gopen):", re.IGNORECASE)


@dataclass(frozen=True)
class Place:
    """A URI taken apart. `bucket` is part of `path`, as pyarrow wants it."""

    scheme: str
    path: str = field(compare=False)
    bucket: str
    options: tuple[tuple[str, str], ...]

    @property
    def name(self) -> str:
        """The URI without options: for messages."""
        return f"{self.scheme}://{self.path}"

    def uri(self, path: str) -> str:
        """Another path of the same bucket as a URI, with the same options."""
        options = "&".join(f"{name}={value}" for name, value in self.options)
        return f"{self.scheme}://{path}" + (f"?{options}" if options else "")


def is_remote(source: str) -> bool:
    """Whether a source is a URI of object storage that may be read."""
    return scheme_of(source) in SCHEMES


def is_sequential(source: str) -> bool:
    """Whether a source can only be read from start to end: a URL or a pipe."""
    return scheme_of(source) in SEQUENTIAL


def scheme_of(source: str) -> str:
    """The scheme of a source in small letters; "" for a path, also as the URI of a file."""
    found = SCHEME.match(source)
    scheme = (found[1] or found[2]).lower() if found else ""
    return "" if scheme == "file" else scheme


def refuse_scheme(source: str) -> None:
    """Raise UsageError if a source has a scheme that is never opened; a path or an allowed URI
    passes.
    """
    scheme, allowed = scheme_of(source), " or ".join(f"{name}://" for name in SCHEMES)
    if scheme in SEQUENTIAL:
        raise UsageError(
            f"data from {scheme}: cannot be indexed: copy it to a disk or to {allowed}, or train on"
            f" it with data.sequential = true; then {LOST}"
        )
    if scheme and scheme not in SCHEMES:
        raise UsageError(f"data from {scheme}: is not read: give a path, or a URI of {allowed}")


def name_of(path: str) -> str:
    """A path, or a URI without its options: what messages call it."""
    return parse(path).name if is_remote(path) else path


def joined(uri: str, name: str) -> str:
    """The URI of what is called `name` directly below a prefix, with the prefix's options."""
    place = parse(uri)
    return place.uri(f"{place.path.rstrip('/')}/{name}")


def split(path: str) -> tuple[str, str]:
    """The folder or prefix of a path or URI, and its last name."""
    if not is_remote(path):
        folder, _, name = path.rpartition("/")
        return folder, name
    place = parse(path)
    folder, _, name = place.path.rpartition("/")
    return place.uri(folder), name


def parse(uri: str) -> Place:
    """A URI taken apart; raise UsageError for another scheme, an unknown option or credentials
    within it.
    """
    refuse_scheme(uri)
    scheme, separator, rest = uri.partition("://")
    if not separator or not is_remote(uri):
        raise UsageError(
            f"{uri!r} is no URI of object storage: {' or '.join(name + '://' for name in SCHEMES)}"
        )
    path, mark, query = rest.rpartition("?")
    path, query = (path, query) if mark and "=" in query else (rest, "")
    bucket = path.partition("/")[0]
    if "@" in bucket or "@" in query:
        raise UsageError(
            "a URI must not hold credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or"
            " AWS_PROFILE"
        )
    options = tuple(
        sorted(
            (name, value)
            for name, _, value in (part.partition("=") for part in query.split("&"))
            if name
        )
    )
    for name, _ in options:
        if name not in OPTIONS:
            raise UsageError(
                f"unknown option {name} in {scheme}://{path}: there are {', '.join(OPTIONS)}"
            )
    if not bucket:
        raise UsageError(f"{uri!r} names no bucket")
    return Place(scheme.lower(), path, bucket, options)
