"""What a run was trained in is stored at each start in which it is another one, and names neither
machine nor user.
"""

import getpass
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.launch.test_worker import finished, wanted
from tests.training.learn import packed
from udl_dist.runs import environment
from udl_dist.runs.run_folder import RunFolder


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_another_environment_is_stored_and_said_when_a_run_goes_on_in_it(tmp_path: Path) -> None:
    experiment = wanted("ae", packed(tmp_path / "data"), tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    for count in (1, 1, 3):  # the second time nothing is new
        torch.set_num_threads(count)
        assert finished(experiment, stop_after=1)["stopped"]
        (tmp_path / "run" / "stop").unlink()
    first, second = environment.recorded(folder.environment)
    assert (first["images"], first["workers"], first["device"], first["backend"]) == (
        0,
        1,
        "cpu",
        "none",
    )
    assert (
        first["torch"] == torch.__version__.partition("+")[0] or first["torch"] == torch.__version__
    )
    assert first["CPU"]
    assert second["images"] > 0
    assert {**second, "images": 0} == {**first, "threads of a worker": 3}
    (said,) = [line for line in folder.messages.read_text().splitlines() if "environment" in line]
    assert said.endswith("in another environment: threads of a worker 3, was 1")


def test_it_names_no_machine_and_no_one(trained: dict[str, Path]) -> None:
    text = (trained["vae"] / "environment.jsonl").read_text()
    values = [str(value) for value in json.loads(text).values()]
    assert socket.gethostname() not in text
    assert getpass.getuser() not in values
    assert str(Path.home()) not in text
    assert str(trained["vae"]) not in text
