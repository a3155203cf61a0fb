"""What the errors of object storage mean, read from pyarrow's words: final, for people, or passing,
to try again.
"""

from __future__ import annotations

import re

from udl_dist.errors import DataError
from udl_dist.storage.fetching import PassingError

ERROR = re.compile(r"AWS Error ([A-Z_]+)(?: \(HTTP status (\d+)\))?|Status\(([A-Z_]+)")
DENIED = {
    "ACCESS_DENIED",
    "INVALID_ACCESS_KEY_ID",
    "SIGNATURE_DOES_NOT_MATCH",
    "INVALID_SIGNATURE",
    "INVALID_CLIENT_TOKEN_ID",
    "UNRECOGNIZED_CLIENT",
    "MISSING_AUTHENTICATION_TOKEN",
    "NOT_SIGNED_UP",
    "401",
    "403",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "ACCESS_DENIED_EXCEPTION",
}
MISSING = {"NO_SUCH_KEY", "NO_SUCH_BUCKET", "RESOURCE_NOT_FOUND", "404", "NOT_FOUND"}
MAY_PASS = {"408", "429"}
EXPIRED = re.compile(
    r"ExpiredToken|EXPIRED_TOKEN|TokenRefreshRequired|RequestExpired|REQUEST_EXPIRED"
)


def meaning(error: OSError, name: str) -> Exception:
    """An error of pyarrow's as what it means: DataError if asking again is no use, else
    PassingError.
    """
    text = str(error)
    found = ERROR.search(text)
    codes = {code for code in (found.groups() if found else ()) if code}
    status = found[2] or "" if found else ""
    if isinstance(error, FileNotFoundError) or codes & MISSING:
        return DataError(f"{name!r} is missing: check the path")
    if EXPIRED.search(text):
        return DataError(
            f"{name!r}: the credentials have expired: renew them (AWS_SESSION_TOKEN, AWS_PROFILE); "
            "the same command goes on"
        )
    if codes & DENIED:
        return DataError(
            f"{name!r}: access denied: check credentials (AWS_ACCESS_KEY_ID, AWS_PROFILE, "
            "GOOGLE_APPLICATION_CREDENTIALS) and what they may read"
        )
    if status.startswith("3"):
        return DataError(
            f"{name!r}: the endpoint redirects (HTTP {status}), which is not followed: "
            "name the right endpoint_override, or the region"
        )
    said = " ".join(re.sub(r"//[^/@\s]+@", "//", text.partition("operation: ")[2] or text).split())[
        :160
    ]
    if status == "501" or (status.startswith("4") and status not in MAY_PASS):
        # a HEAD does not tell why
        expired = "whether the credentials have expired, " if status == "400" else ""
        return DataError(
            f"{name!r}: refused (HTTP {status}, {said}): check {expired}the URI, the region and the"
            " endpoint"
        )
    return PassingError(" ".join([*sorted(codes), said]))
