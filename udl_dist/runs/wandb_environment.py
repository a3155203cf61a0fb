"""W&B's mode, key and server as the environment has them, without importing wandb."""

from __future__ import annotations

import base64
import configparser
import http.client
import json
import netrc
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from udl_dist.errors import UsageError

PROBE_SECONDS = 3.0
# All modes that WANDB_MODE may have, those of older releases included.
MODES = {
    "online": "online",
    "run": "online",
    "shared": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "off",
}
# W&B's present and former servers share their keys.
HOSTED = ("api.forge.coreweave.com", "api.wandb.ai")


def mode_asked() -> tuple[str, str]:
    """`online`, `offline` or `off`, and the variable or file that says so; or "" twice."""
    # In W&B's own order: variables, then the folder's settings file, then the user's.
    disabled = os.environ.get("WANDB_DISABLED", "")
    if disabled.lower() not in ("", "0", "false", "no", "off"):
        return "off", f"WANDB_DISABLED={disabled}"
    if mode := os.environ.get("WANDB_MODE", ""):
        return _known(mode, f"WANDB_MODE={mode}"), f"WANDB_MODE={mode}"
    for file in _settings_files():
        # Without interpolation, as a "%" in another entry is not one.
        parser = configparser.ConfigParser(interpolation=None)
        try:
            parser.read(file, encoding="utf-8")
            mode = parser.get("default", "mode", fallback="")
        except (OSError, UnicodeDecodeError, configparser.Error) as error:
            raise UsageError(
                f"cannot read W&B's settings file {file}: {' '.join(str(error).split())}"
            ) from None
        if mode:
            return _known(mode, f"mode = {mode} in {file}"), f"mode = {mode} in {file}"
    return "", ""


def key_for(base_url: str) -> str:
    """The key for a server, from the environment or from netrc; "" if there is none."""
    if key := os.environ.get("WANDB_API_KEY", ""):
        return key
    url = urllib.parse.urlsplit(base_url)
    # `wandb login` writes the key into netrc, as the password of the server.
    file = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    try:
        known = netrc.netrc(file)
    except (OSError, UnicodeDecodeError, netrc.NetrcParseError):
        return ""
    # An entry with a port before one without.
    names = [url.netloc, url.hostname or "", *(HOSTED if url.hostname in HOSTED else ())]
    found = next((entry for name in names if (entry := known.hosts.get(name))), None)
    return (found[2] or "") if found else ""


def why_unreachable(base_url: str, key: str, proxies: Mapping[str, str]) -> str:
    """Why the server cannot be used; "" if it accepts the key. Takes seconds at most.

    Asks through the proxies that W&B would use: `proxies` by scheme, and those of the environment.
    """
    url = urllib.parse.urlsplit(base_url)
    login = base64.b64encode(f"api:{key}".encode()).decode()
    headers = {"Authorization": f"Basic {login}", "Content-Type": "application/json"}
    # The smallest question whose answer depends on the key.
    question = json.dumps({"query": "query Viewer { viewer { id } }"}).encode()
    host = url.hostname or ""
    direct = (
        host in ("localhost", "::1") or host.startswith("127.") or urllib.request.proxy_bypass(host)
    )
    # urllib would ask a proxy even for this machine.
    ways = {} if direct else {**urllib.request.getproxies(), **proxies}
    # Its host alone: messages must not show a name and password.
    through = ways.get(url.scheme, "").rstrip("/").rpartition("@")[2].rpartition("/")[2]
    who = f"{host} through the proxy {through}" if through else host
    opener = urllib.request.build_opener(urllib.request.ProxyHandler(ways))
    try:
        request = urllib.request.Request(f"{base_url.rstrip('/')}/graphql", question, headers)
        with opener.open(request, timeout=PROBE_SECONDS) as answer:
            # Bounded, because anything may answer at that address.
            known = (json.loads(answer.read(1 << 16)).get("data") or {}).get("viewer")
        return "" if known else f"{who} does not know the key"
    except urllib.error.HTTPError as error:
        return f"{who} answers {error.code} {error.reason}"
    # ValueError, AttributeError: an answer that is not JSON, or not a table.
    except (OSError, http.client.HTTPException, ValueError, AttributeError) as error:
        return f"{who} does not answer ({getattr(error, 'reason', error)})"


def _known(mode: str, where: str) -> str:
    if mode not in MODES:
        raise UsageError(f"{where}: not a mode of W&B: set it to online, offline or disabled")
    return MODES[mode]


def _settings_files() -> list[Path]:
    """The files that `wandb offline` and `wandb login` write: of the folder, then of the user."""
    root = Path(os.environ.get("WANDB_DIR") or ".").expanduser()
    own = root / (".wandb" if (root / ".wandb").is_dir() else "wandb")
    user = Path(os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb").expanduser()
    return [own.absolute() / "settings", user / "settings"]
