"""One `udl train` from what was asked to what came out: data made ready, folder held, launched,
told.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from udl_dist import experiment as experiments
from udl_dist import methods
from udl_dist.core import files
from udl_dist.core.faults import checked
from udl_dist.data.loader.opening import Prepared
from udl_dist.data.packing.prepare import prepare, settled
from udl_dist.errors import UsageError
from udl_dist.experiment import Experiment
from udl_dist.launch.plan import Plan, plan_here
from udl_dist.runs import remote
from udl_dist.runs.remote_launcher import Launcher, carried
from udl_dist.runs.run_folder import RunFolder
from udl_dist.runs.terminal import Progress, Terminal, page_hint
from udl_dist.runs.tracking import read_key, resolved
from udl_dist.storage.uris import is_remote, name_of, refuse_web


@dataclass(frozen=True)
class Ended:
    """How a run ended: `images` seen, held-out figures, and the signal that stopped it, 0 if none
    did.

    `name` is the run folder as it was asked for, `folder` the one on this disk.
    """

    name: str
    folder: Path
    images: int
    figures: dict[str, float]
    signal: int = 0
    complete: bool = True
    about_samples: str = ""  # what to know of generated images, with commands on RUN

    @property
    def damaged(self) -> int:
        listed = self.folder / "damaged.txt"
        return len(listed.read_text(encoding="utf-8").splitlines()) if listed.exists() else 0

    @property
    def exit_code(self) -> int:
        return 128 + self.signal if self.signal and not self.complete else 0

    def lines(self) -> list[str]:
        """The end for a person: figures, where everything lies, what to do next."""
        held_out = [
            f"  {name} {value:.5g}"
            for name, value in self.figures.items()
            if name.startswith("val/")
        ]
        state = "complete" if self.complete else "stopped; the same command goes on"
        places = ("experiment.toml", "curves.jsonl", "pictures", "checkpoints", "damaged.txt")
        peak = self.figures.get("perf/memory_bytes", 0)
        there = ", ".join(place for place in places if (self.folder / place).exists())
        lines = [
            f"{name_of(self.name)}: {state} after {self.images:,} images",
            *held_out,
            f"  memory of a worker {peak / 2**20:,.0f} MiB" if peak else "",
            f"  in it: {there}",
            (
                f"  {self.damaged:,} damaged records were replaced by others: damaged.txt"
                if self.damaged
                else ""
            ),
            (
                f"  look at {name_of(self.name)}/pictures; train further: --train.total_images or"
                " --train.epochs"
            ),
            (
                f"  {self.about_samples.replace('RUN', name_of(self.name))}"
                if self.about_samples
                else ""
            ),
        ]
        return [line for line in lines if line]

    def as_dict(self) -> dict[str, Any]:
        return {
            "folder": self.name,
            "images": self.images,
            "complete": self.complete,
            "figures": self.figures,
        }


def train(experiment: Experiment, out: TextIO, verbose: bool = False, faults: str = "") -> Ended:
    """Run or resume `experiment` in its folder; what a person should see while it runs goes to
    `out`.

    `faults` happen on purpose, if the environment asks for them too (see faults.py).
    """
    checked(faults)
    if not experiment.run.folder:
        raise UsageError("run.folder is empty: give --run.folder")
    refuse_web(experiment.run.folder, "run.folder")
    folder = RunFolder(remote.working(experiment.run.folder, "launcher"))
    if not is_remote(experiment.run.folder):
        experiment = replace(experiment, run=replace(experiment.run, folder=str(folder.path)))
    if experiment.track.key_file:
        read_key(experiment.track)
    resolved(experiment.track)  # refuses a mode that W&B does not have
    with (
        folder.held(),
        files.errors_named(folder.path),
        carried(experiment.run.folder, folder) as far,
    ):
        if experiment.run.fresh:
            if aside := (far or folder).set_aside():
                folder.say(f"a fresh start: what was here lies in {aside}")
            experiment = replace(experiment, run=replace(experiment.run, fresh=False))
        experiment = experiment.replace(
            data=settled(experiment.data.absolute(), Progress("packing", out))
        )
        _refuse_another(folder, experiment)
        plan_here(experiment)  # refuses what it can before a million images are packed
        prepared = prepare(experiment.data, Progress("packing", out))
        planned = planned_of(experiment)
        if (ended := _finished(folder, experiment, planned)) is not None:
            return ended
        files.write_whole(folder.experiment, experiment.to_toml())
        if far:
            prepared = far.shared(prepared)
            far.carry()
        return _launch(folder, experiment, prepared, planned, out, verbose, faults, far)


def planned_of(experiment: Experiment) -> Plan:
    """The plan; also what `run.best` names is held against what the method will report, which needs
    torch.
    """
    experiment = experiment.replace(data=settled(experiment.data))
    planned = plan_here(experiment)
    if experiment.train.init_from:
        from udl_dist.models import warm_start

        warm_start.check(experiment)
    if experiment.run.best:
        from udl_dist.training.metric_names import refuse_unknown

        method = methods.find(experiment.method_name)(experiment.method, experiment.data.shape)
        refuse_unknown("run.best", experiment.run.best, method)
    return planned


def best_of(experiment: Experiment) -> str:
    """The held-out metric that chooses the best checkpoint; "" if the method has none."""
    own = methods.find(experiment.method_name).best
    return experiment.run.best or (f"val/{own}" if own else "")


def _launch(
    folder: RunFolder,
    experiment: Experiment,
    prepared: Prepared,
    planned: Plan,
    out: TextIO,
    verbose: bool,
    faults: str,
    far: Launcher | None,
) -> Ended:
    from udl_dist.launch import supervisor
    from udl_dist.launch.train_group import Launched

    terminal = Terminal(folder, planned.total_images, out, best_of(experiment))
    for line in planned.lines():
        terminal.say(line)
    terminal.say(page_hint(folder.path))
    # The folder keeps what was asked; the workers, which may be on other machines, get what holds
    # on this one.
    track, tracked = resolved(experiment.track)
    experiment = experiment.replace(track=track)
    if tracked:
        terminal.say(tracked)
    result = supervisor.run(Launched(experiment, prepared, faults, far=far), terminal, verbose)
    if far:
        far.carry()
    ended = Ended(
        experiment.run.folder,
        folder.path,
        result["images"],
        result["figures"],
        result["signal"],
        not result["stopped"],
        _about_samples(experiment),
    )
    if ended.complete:
        folder.finish({"images": ended.images, "figures": ended.figures})
    return ended


def _refuse_another(folder: RunFolder, experiment: Experiment) -> None:
    """A folder that holds another experiment is left as it is; what differs is named with both
    values.
    """
    if not folder.experiment.exists():
        return
    before = experiments.load(folder.experiment, {})
    before = before.replace(data=before.data.absolute())
    if differing := experiments.differences(before, experiment):
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise UsageError(
            f"{name_of(experiment.run.folder)} holds another experiment: {'; '.join(differing[:3])}"
            f"{more}: choose another --run.folder, or the settings it was started with"
        )


def _finished(folder: RunFolder, experiment: Experiment, planned: Plan) -> Ended | None:
    """The end of a run that is complete already, unless more images are asked of it now."""
    result = folder.finished()
    if result is None or result["images"] < planned.total_images:
        return None
    return Ended(
        experiment.run.folder,
        folder.path,
        result["images"],
        result["figures"],
        about_samples=_about_samples(experiment),
    )


def _about_samples(experiment: Experiment) -> str:
    return methods.find(experiment.method_name).about_samples
