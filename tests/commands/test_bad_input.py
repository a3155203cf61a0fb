"""What is wrong with a cluster, by the commands that a person types: one line, and exit code 5 or
2.
"""

from pathlib import Path

import pytest

from tests.commands.test_connection import TOKEN, Dashboard
from tests.commands.test_connection import dashboard as dashboard  # a fixture
from tests.commands.test_job import JOBS
from tests.test_cli import refused, udl

CASES = {
    "wrong address": "no Ray dashboard at http://nowhere.invalid:8265",
    "closed port": "connection refused",
    "no token": "asks for a token, and there is none in",
    "wrong token": "does not accept the token: is it this cluster's?",
    "another Ray": "runs Ray 2.9.0, here is",
    "credentials in it": "must not hold credentials",
}


@pytest.mark.parametrize("case", CASES)
def test_a_door_that_stays_shut_is_told_in_one_line(
    case: str, dashboard: Dashboard, tmp_path: Path
) -> None:
    address = dashboard.address
    if case == "wrong address":
        address = "nowhere.invalid:8265"
    elif case == "closed port":
        address = "127.0.0.1:1"
    elif case == "no token":
        (tmp_path / "token").unlink()
    elif case == "wrong token":
        (tmp_path / "token").write_text(TOKEN[::-1])
    elif case == "another Ray":
        dashboard.version = "2.9.0"
    else:
        address = f"http://me:{TOKEN}@head:8265"
    done = udl("submit", str(JOBS / "ae_digits.toml"), "--address", address)
    refused(done, 2 if case == "credentials in it" else 5, CASES[case])
    assert TOKEN not in done.stderr
