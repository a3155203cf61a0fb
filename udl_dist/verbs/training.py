"""udl train and udl plan: what is learned, and what that would take elsewhere."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from udl_dist.errors import UsageError
from udl_dist.forecast.settings import ForecastSettings
from udl_dist.verbs import Verbs, listed, new_runner, new_verb, progress, show


def add(verbs: Verbs) -> None:
    train = new_runner(
        verbs,
        "train",
        "a job file, such as jobs/vae_digits.toml, or a run folder; none: --method.name and --data.source",
        "print the plan and start nothing",
        "break the run on purpose",
        help="train what a job file says; again: resume",
        epilog="any setting: --section.name value (udl train --settings lists them)",
    )
    train.set_defaults(act=_train)

    plan = new_verb(verbs, "plan", ForecastSettings, help="what a job would do on machines that are not here",
                    description="Measures parts of the job on this machine and works out how it would go elsewhere; "
                    "settings of the job are --section.name value, as for udl train.")  # fmt: skip
    plan.add_argument("job", type=Path, nargs="?", help="a job file, such as jobs/vae_digits.toml, or a run folder")
    plan.add_argument("--save", type=Path, metavar="FILE", help="keep the measured parts")
    plan.add_argument("--parts", type=Path, metavar="FILE", help="take up parts that were kept; nothing is measured")
    plan.set_defaults(act=_plan)


def _train(asked: argparse.Namespace, flags: dict[str, str]) -> int:
    from udl_dist import experiment, session

    if asked.help_settings:
        print(listed(experiment.describe(flags.get("method.name", "vae"))))
        return 0
    if asked.job is None and "method.name" not in flags:
        raise UsageError(
            "udl train needs a job file, such as jobs/vae_digits.toml, or --method.name and --data.source "
            "(udl train --settings lists settings)"
        )
    wanted = experiment.load(asked.job, flags)
    if asked.dry_run:
        planned = session.planned_of(wanted)
        show(planned.lines(), planned.as_dict(), asked.json)
        return 0
    ended = session.train(wanted, sys.stderr, asked.verbose, asked.faults)
    show(ended.lines(), ended.as_dict(), asked.json)
    return ended.exit_code


def _plan(asked: argparse.Namespace, flags: dict[str, str]) -> int:
    from udl_dist import experiment, settings
    from udl_dist.forecast import forecast

    machines = {name: text for name, text in flags.items() if "." not in name}
    wanted = settings.from_flags(ForecastSettings, machines)
    job = experiment.load(asked.job, {name: text for name, text in flags.items() if "." in name})
    found = forecast.forecast(job, wanted, asked.parts, asked.save, progress("packing"))
    show(found.lines(), found.as_dict(), asked.json)
    return 0
