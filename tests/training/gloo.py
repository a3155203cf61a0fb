"""Real gloo ranks for tests: a function run in `world` processes that meet through a file.

Processes are forked from a server that has imported everything: a start takes a tenth of a second,
not the three seconds of importing torch.
"""

import multiprocessing
import os
import pickle
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(
    [
        "pytest",
        "udl_dist.cli",
        "udl_dist.data.packing.pack",
        "udl_dist.data.checking.check",
        "udl_dist.inference.evaluating",
        "udl_dist.search.config",
        "torch._dynamo",
        "torch.distributed.optim",
        "udl_dist.launch.worker",
        "udl_dist.methods.ae",
        "udl_dist.methods.vae",
        "udl_dist.methods.gan",
        "tests.bench.relaunch",
    ]
)


def run(
    world: int, function: Callable[..., Any], *arguments: Any, seconds: float = 90
) -> list[Any]:
    """What `function(*arguments)` returned in each of `world` ranks; raise what the first failing
    rank raised as text.

    `function` is at the top level of a module; it makes its own `Ranks()`. One rank runs in a
    process too, so that a comparison of worlds compares nothing else.
    """
    with tempfile.TemporaryDirectory() as folder:
        ends, processes = [], []
        for rank in range(world):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(
                target=_rank,
                args=(rank, world, Path(folder), dict(os.environ), theirs, function, arguments),
            )
            process.start()
            theirs.close()
            ends.append(ours)
            processes.append(process)
        try:
            outcomes = [_received(end, seconds) for end in ends]
        finally:
            for process in processes:
                process.join(5)
                process.kill()
                process.join()
                process.close()
    failures = [outcome for outcome in outcomes if isinstance(outcome, str)]
    if failures:
        raise AssertionError(failures[0])
    return [outcome[0] for outcome in outcomes]


def _received(end: Connection, seconds: float) -> Any:
    with end:
        try:
            return (
                pickle.loads(end.recv_bytes())
                if end.poll(seconds)
                else f"a rank did not answer in {seconds} s"
            )
        except EOFError:
            return "a rank died without a word"


def _rank(  # noqa: PLR0913  (what a process of its own is given)
    rank: int,
    world: int,
    folder: Path,
    environment: dict[str, str],
    end: Connection,
    function: Callable[..., Any],
    arguments: Any,
) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ.update(environment)  # the server has that of its own start
    try:
        if world > 1:
            dist.init_process_group(
                "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world
            )
        outcome: Any = (function(*arguments),)
    except BaseException:
        outcome = traceback.format_exc()
    end.send_bytes(pickle.dumps(outcome))
    if world > 1 and not isinstance(outcome, str):
        dist.destroy_process_group()
