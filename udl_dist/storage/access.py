"""Endpoints, regions and keys of buckets, from URIs, the environment and the files of AWS."""

from __future__ import annotations

import configparser
import os
import urllib.request
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit

from udl_dist.errors import UsageError
from udl_dist.storage.uris import Uri

REGIONS = "https://s3.amazonaws.com"  # answers with the region of any bucket


def endpoint_of(uri: Uri) -> str:
    """The endpoint that a URI or the environment names; "": the default of its service."""
    endpoint = uri.options.get("endpoint_override") or (
        _aws_endpoint() if uri.scheme == "s3" else ""
    )
    # https unless the URI says otherwise: nothing is sent in the clear by an oversight.
    if endpoint and "://" not in endpoint:
        endpoint = f"{uri.options.get('scheme', 'https')}://{endpoint}"
    return endpoint.rstrip("/")


def region_of(uri: Uri) -> str:
    """The region in the URI, else the one where Amazon has the bucket, else the environment's."""
    named = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or ""
    # Behind an endpoint is another service, which Amazon knows nothing about.
    if "region" in uri.options or endpoint_of(uri):
        return uri.options.get("region", named)
    # Requests to another region than the bucket's are answered by a redirect without a location.
    request = urllib.request.Request(f"{REGIONS}/{uri.bucket}", method="HEAD")
    try:
        headers = urllib.request.build_opener(_Unfollowed).open(request, timeout=5).headers
    except HTTPError as error:  # 301 and 403 have the header too
        headers = error.headers
    except OSError:
        return named
    return str(headers.get("x-amz-bucket-region") or named)


class _Unfollowed(urllib.request.HTTPRedirectHandler):
    # The redirect itself has the header with the region.
    def redirect_request(self, *_: Any) -> None:
        return None


def _aws_endpoint() -> str:
    """The endpoint that the environment names; raise UsageError for credentials in it."""
    # Messages show the endpoint, so it must not hold secrets.
    named = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    if "@" in named:
        raise UsageError(
            "AWS_ENDPOINT_URL_S3 and AWS_ENDPOINT_URL must not hold credentials: set"
            " AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        )
    return named


def refuse_open_proxy(endpoint: str) -> None:
    """Raise UsageError if a proxy could read the tokens of requests that are not encrypted."""
    parts = urlsplit(endpoint)
    # Of https a proxy sees only the host, as it passes on the encrypted bytes (CONNECT).
    proxies = urllib.request.getproxies()
    proxied = "http" in proxies or "all" in proxies
    if parts.scheme == "http" and proxied and not urllib.request.proxy_bypass(parts.netloc):
        raise UsageError(
            f"{endpoint} is not encrypted, and a proxy (http_proxy) would read the credentials sent"
            f" there: add {parts.hostname} to no_proxy, or name an https endpoint"
        )


def profile() -> dict[str, str]:
    """The keys and region of AWS_PROFILE, which obstore does not read; {} if keys are set."""
    # The order of the AWS SDK: variables, then the profile in `credentials`, then that in `config`.
    name = os.environ.get("AWS_PROFILE") or "default"
    if os.environ.get("AWS_ACCESS_KEY_ID"):
        return {}
    # Raw, as a "%" in a secret key is not an interpolation.
    config = configparser.RawConfigParser()
    home = Path("~/.aws").expanduser()
    config.read([os.environ.get("AWS_CONFIG_FILE") or home / "config"])
    # Only `config` puts "profile" in front of the names, except for the default one.
    if f"profile {name}" in config:
        config[name] = config[f"profile {name}"]
    config.read([os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or home / "credentials"])
    section = dict(config[name]) if name in config else {}
    keys = {"access_key_id", "secret_access_key", "session_token"}
    found = {key: section[f"aws_{key}"] for key in keys if f"aws_{key}" in section}
    if not found and "AWS_PROFILE" in os.environ:
        raise UsageError(
            f"AWS profile {name!r} holds no keys (is it of SSO or a role?): run "
            f'eval "$(aws configure export-credentials --profile {name} --format env)" first'
        )
    return found | ({"region": section["region"]} if "region" in section else {})
