"""The check for a GPU runs, small, where there is none: so that it works on the day when there is
one.
"""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

pytestmark = pytest.mark.long


def test_the_check_for_a_gpu_runs_small_on_a_cpu() -> None:
    environment = {**os.environ, "SMALL": "1", "LIMIT": "900"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.gpu"], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: list[dict[str, Any]] = [
        json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")
    ]
    assert [line for line in found if "failed" in line or line.get("rc")] == []
    bits = [line for line in found if line["check"].startswith("bits")]
    assert len(bits) == 9 and all(line["repeats"] and line["resumes"] for line in bits)
    assert next(line for line in found if line["check"] == "decoded on the device")["same"]
    compiled = [line for line in found if line["check"].startswith("compile")]
    assert len(compiled) == 4
    for line in compiled:
        assert line["frames"]["ok"] > 0 and line["apart"] < 1e-3, line
    by_name = {line["check"]: line for line in found}
    assert by_name["two bad steps"]["rejected"] == [192, 240] and by_name["two bad steps"]["finite"]
    assert by_name["CPU run"]["cuda"] == "False"
    assert found[-1]["check"] == "end"
