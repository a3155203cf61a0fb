"""The only room that knows Ray Tune: it gives actors to trials, hands their results to the
conductor, and takes ends.

What Tune is asked for is the leanest there is: no loggers, no snapshots that anybody reads, an
actor that is used again for the next trial, and a result at each rung alone. Its own ASHA and
median rule make the decisions.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from ray import tune
from ray.tune.execution import class_cache
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    TrialScheduler,
)
from ray.tune.search import Searcher

from udl_dist.search import trial
from udl_dist.search.config import SearchSettings
from udl_dist.search.follow import Follower
from udl_dist.search.scheduler import Rule
from udl_dist.search.trial import Outcome, Turn

POLL_SECONDS = 0.05  # of an actor for the points of its trial
# of a trial whose workers take the cores: nothing they need, and not nothing
DRIVER = {"CPU": 0, "memory": 2**20}
ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "100000",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "1",
    "TUNE_WARN_SLOW_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "100000",
    "TUNE_WARN_THRESHOLD_S": "100",
    "RAY_AIR_NEW_OUTPUT": "0",
}


class Conducts(Protocol):
    """What is to be run, and who is told what came of it; called from one thread."""

    @property
    def over(self) -> bool: ...

    def next(self) -> Turn | None: ...

    def arrived(self, number: int, images: int, figures: dict[str, float]) -> None: ...

    def ended(self, number: int, outcome: Outcome) -> None: ...

    def died(self, number: int) -> None: ...


def run(
    conductor: Conducts, parallel: int, resources: dict[str, float], storage: Path, grouped: bool
) -> None:
    """Run what the conductor has until it has nothing more; so many trials at once, each with those
    resources.

    `grouped`: a trial has workers of its own, which Ray Train takes, so that its actor takes
    nothing from them.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # all actors start at once, not one after the other
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(parallel)
    told = _Guarded(conductor)
    # Ray would put the AWS keys of this process into the runtime_env of a trial: into logs,
    # arguments, the dashboard.
    class_cache.ENV_VARS_TO_PROPAGATE -= {
        name for name in class_cache.ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")
    }
    shutil.rmtree(storage, ignore_errors=True)
    try:
        tune.Tuner(
            tune.with_resources(Slot, DRIVER if grouped else resources),
            param_space=None,
            tune_config=tune.TuneConfig(
                search_alg=_Asker(told, parallel, grouped, resources.get("GPU", 1.0)),
                scheduler=_Desk(told),
                num_samples=-1,
                reuse_actors=True,
                trial_name_creator=str,
                trial_dirname_creator=lambda each: each.trial_id,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(storage),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=0),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        ).fit()
    except Exception as error:
        raise told.error or error from None
    finally:
        shutil.rmtree(storage, ignore_errors=True)
    if told.error or not conductor.over:
        raise told.error or RuntimeError("Tune ended before the search did")


def rule(settings: SearchSettings, places: tuple[int, ...], budget: int) -> Rule:
    """Tune's own rule for the scheduler that was asked for."""
    if not places:
        return _Never()
    if settings.scheduler == "median":
        return _Told(
            MedianStoppingRule(
                "images", "metric", "min", grace_period=places[0], min_samples_required=3
            )
        )
    return _Told(
        AsyncHyperBandScheduler(
            "images",
            "metric",
            "min",
            max_t=budget,
            grace_period=places[0],
            reduction_factor=settings.reduction,
        )
    )


class _Never:
    def stops(self, trial: int, images: int, metric: float) -> bool:
        return False


class _StandIn:
    """What a scheduler of Tune needs to know of a trial, or of the controller that runs none."""

    def __init__(self, trial_id: str = "") -> None:
        self.trial_id = trial_id

    def get_live_trials(self) -> list[Any]:
        return []


class _Told:
    """A scheduler of Tune that is told results in our order."""

    def __init__(self, scheduler: TrialScheduler) -> None:
        self._scheduler, self._known = scheduler, dict[int, _StandIn]()

    def stops(self, trial: int, images: int, metric: float) -> bool:
        if trial not in self._known:
            self._known[trial] = _StandIn(f"{trial:04d}")
            self._scheduler.on_trial_add(_StandIn(), self._known[trial])
        told = {"images": images, "metric": metric}
        return bool(
            self._scheduler.on_trial_result(_StandIn(), self._known[trial], told)
            == TrialScheduler.STOP
        )


class _Guarded:
    """A conductor whose first error, such as of a full disk, is kept: Tune would make a text of
    it.
    """

    def __init__(self, conductor: Conducts) -> None:
        self._conductor = conductor
        self.error: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._conductor, name)
        return partial(self._kept, found) if callable(found) else found

    def _kept(self, method: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return method(*arguments)
        except Exception as error:
            self.error = self.error or error
            raise


class _Asker(Searcher):  # type: ignore[misc]
    """Asks the conductor for the next trial, never for more than have a place."""

    def __init__(self, conductor: _Guarded, parallel: int, grouped: bool, gpu_share: float) -> None:
        super().__init__()
        self._conductor, self._parallel = conductor, parallel
        self._grouped, self._gpu_share = grouped, gpu_share
        self._live: dict[str, int] = {}

    def suggest(self, trial_id: str) -> Any:
        if len(self._live) >= self._parallel:
            return None
        turn = self._conductor.next()
        if turn is None:
            return Searcher.FINISHED if self._conductor.over and not self._live else None
        self._live[trial_id] = turn.trial
        # Not in the settings that Tune is given: it keeps those of every trial, several times over.
        return {"folder": str(turn.write()), "grouped": self._grouped, "gpu_share": self._gpu_share}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        number = self._live.pop(trial_id)
        if error or not (result and "outcome" in result):
            self._conductor.died(number)
        else:
            self._conductor.ended(number, Outcome(**json.loads(result["outcome"])))

    def save(self, checkpoint_path: str) -> None: ...

    def restore(self, checkpoint_path: str) -> None: ...

    def save_to_dir(self, *_: Any, **__: Any) -> None: ...


class _Desk(FIFOScheduler):  # type: ignore[misc]
    """Where results come in. What is decided reaches a trial by its folder, so that all its ranks
    end by themselves.
    """

    def __init__(self, conductor: _Guarded) -> None:
        super().__init__()
        self._conductor = conductor

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        self._take(result)
        return str(TrialScheduler.CONTINUE)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        self._take(result)
        # 15 of 25 KB that Tune holds of a trial
        for kept in (trial.metric_analysis, trial.metric_n_steps):
            kept.clear()

    def _take(self, result: dict[str, Any]) -> None:
        for images, figures in json.loads(result.get("points", "[]")):
            self._conductor.arrived(result["number"], images, figures)


class Slot(tune.Trainable):  # type: ignore[misc]
    """An actor that trains one trial after the other; each in a thread, so that its results can be
    handed on.
    """

    def setup(self, config: dict[str, Any]) -> None:
        self._wake = threading.Event()
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._thread.join()
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Wait for the next validations of the trial, or its end."""
        while True:
            alive = self._thread.is_alive()
            if (points := self._follower.fresh()) or not alive:
                told = {"number": self._turn.trial, "points": json.dumps(points)}
                if alive:
                    return told
                return told | {"outcome": json.dumps(asdict(self._outcome)), "done": True}
            self._wake.wait(POLL_SECONDS)
            self._wake.clear()

    def _begin(self, config: dict[str, Any]) -> None:
        folder = Path(config["folder"])
        self._turn, self._gpu_share = Turn.read(folder), config["gpu_share"]
        self._follower = Follower(folder / "curves.jsonl")
        self._outcome = Outcome("failed", why="it did not begin")
        self._thread = threading.Thread(
            target=self._train, args=(self._group(config["grouped"]),), daemon=True
        )
        self._thread.start()

    def _group(self, grouped: bool) -> Callable[..., dict[str, Any]] | None:
        if not grouped:
            return None
        from udl_dist.launch.driver import train_in_cluster

        return train_in_cluster

    def _train(self, group: Callable[..., dict[str, Any]] | None) -> None:
        self._outcome = trial.train(self._turn, group, self._wake.set, self._gpu_share)
        self._wake.set()
