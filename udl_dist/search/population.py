"""Population based training (Jaderberg et al. 2017) in step: a generation after the other, decided by keyed draws.

After each generation the worst quarter take over the weights of one of the best quarter, and its settings, changed a
little. Every generation is one line of generations.jsonl, with the donor and the hash of what it gave, so that the
schedule of any member can be played again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from udl_dist import disk, methods
from udl_dist.errors import UsageError
from udl_dist.permutation import chain
from udl_dist.search.axes import Axis, with_values
from udl_dist.search.sampler import place
from udl_dist.search.settings import Search

QUARTER = 4
FACTORS = (0.8, 1.2)
TRAIN = ("learning_rate", "beta1", "beta2", "weight_decay", "clip_norm")


@dataclass(frozen=True)
class Member:
    """A member at the end of a generation: its metric (None: it failed), and with what it goes on, from whose weights.

    `donor` is its own number unless it took another's weights, `sha256` that of the networks it goes on with.
    """

    trial: int
    loss: float | None
    settings: dict[str, Any]
    donor: int
    sha256: str = ""


def refuse_lost_weights(search: Search) -> None:
    """Raise UsageError for an axis that changes what the weights are weights of, by name."""
    if search.settings.sampler == "optuna" or search.settings.seeds > 1 or search.settings.trials < 2:
        raise UsageError("search.scheduler = pbt needs search.trials of 2 or more, sampler random or grid, and seeds 1")
    for axis in search.axes:
        table, name = axis.name.split(".", 1)
        survives = name in TRAIN if table == "train" else table == "method" and _same_networks(search, axis)
        if not survives:
            raise UsageError(f"search.{axis.name} cannot be changed by pbt, for weights do not survive it: search it "
                             "by asha, median or none")  # fmt: skip


def boundaries(search: Search, budget: int, batch_size: int) -> tuple[int, ...]:
    """The images at which generations end, in whole steps; the last one is the end of the run."""
    every = search.settings.perturb_images or max(1, budget // 10)
    every = -(-every // batch_size) * batch_size
    return (*range(every, budget, every), budget)


def next_members(search: Search, generation: int, losses: Mapping[int, float | None],
                 settings: Mapping[int, dict[str, Any]]) -> list[Member]:  # fmt: skip
    """Who goes on with what: a pure function of the losses, the settings and the seed."""
    alive = sorted((loss, trial) for trial, loss in losses.items() if loss is not None)
    count = max(1, len(alive) // QUARTER) if len(alive) > 1 else 0
    best, worst = [trial for _, trial in alive[:count]], {trial for _, trial in alive[len(alive) - count :]}
    found = []
    for trial, loss in sorted(losses.items()):
        if trial not in worst:
            found.append(Member(trial, loss, settings[trial], trial))
            continue
        key = chain(search.settings.seed, generation, trial)
        donor = best[key % len(best)]
        values = {axis.name: _changed(axis, settings[donor][axis.name], key) for axis in search.axes}
        found.append(Member(trial, loss, values, donor))
    return found


def lineage(generations: list[list[Member]], places: tuple[int, ...], first: Mapping[int, dict[str, Any]],
            trial: int) -> list[tuple[int, dict[str, Any]]]:  # fmt: skip
    """The schedule behind the weights of a member: (images until which, settings), from the start on."""
    pieces: list[tuple[int, dict[str, Any]]] = []
    for number in range(len(places) - 1, -1, -1):
        before = {member.trial: member for member in generations[number - 1]} if number else {}
        pieces.append((places[number], before[trial].settings if number else first[trial]))
        trial = before[trial].donor if number else trial
    return pieces[::-1]


def read(path: Path) -> list[list[Member]]:
    """The generations of a file; a torn last line is of one that will be decided again, and alike."""
    return [[Member(**member) for member in json.loads(line)["members"]] for line in disk.whole_lines(path)]


def append(path: Path, generation: int, images: int, members: list[Member]) -> None:
    """Keep a generation."""
    told = {"generation": generation, "images": images, "members": [vars(member) for member in members]}
    disk.append_lasting(path, json.dumps(told))


def _changed(axis: Axis, value: Any, key: int) -> Any:
    """A value a little up or down, or, once in four, drawn anew."""
    draw = place(key, 0, axis.name)
    if draw < 0.25:
        return axis.at(place(key, 1, axis.name))
    up = draw >= 0.625
    if axis.values:
        at = min(max(axis.index(value) + (1 if up else -1), 0), len(axis.values) - 1)
        return axis.values[at]
    moved = min(max(value * FACTORS[up], axis.low), axis.high)
    return round(moved) if axis.whole else moved


def _same_networks(search: Search, axis: Axis) -> bool:
    """Whether the networks of all values are the same, but for what they drop."""
    kind = methods.find(search.base.method_name)
    shapes = []
    for value in axis.ends():
        made = with_values(search.base, {axis.name: value})
        networks = kind(made.method, made.data.shape).describe()
        shapes.append({name: [layer for layer in network.layers if type(layer).__name__ != "Dropout"]
                       for name, network in networks.items()})  # fmt: skip
    return all(shape == shapes[0] for shape in shapes)
