"""A population in step: exploited weights are the donor's, each generation is kept, its schedule can be replayed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.search.asked import wanted
from tests.search.simulated import population, trained
from tests.test_worker import manifest
from udl_dist.errors import UsageError
from udl_dist.search.finals import Finals
from udl_dist.search.journal import Journal
from udl_dist.search.planning import plan
from udl_dist.search.population import Member, lineage, next_members, read
from udl_dist.search.results import winner
from udl_dist.search.settings import Search
from udl_dist.search.trial import folder_of

AXES = {"train.learning_rate": {"log": [1e-4, 1e-1]}}


def searched(source: Path, folder: Path, **plain: Any) -> Search:
    plain = {"trials": 5, "perturb_images": 60, "least_images": 0} | plain
    return wanted(source, folder, AXES, scheduler="pbt", **plain)


@pytest.mark.parametrize(
    ("axis", "method"),
    [("method.latent_dim", "ae"), ("train.batch_size", "ae"), ("train.optimizer", "vae"), ("data.flip", "vae"),
     ("method.network.widths", "vae")],
)  # fmt: skip
def test_what_weights_do_not_survive_is_refused_by_name(axis: str, method: str, source: Path, tmp_path: Path) -> None:
    values = {"train.optimizer": ["adam", "sgd"], "data.flip": [True, False], "method.network.widths": [[8], [16]]}
    search = wanted(source, tmp_path, {axis: {"choice": values.get(axis, [12, 24])}}, method, scheduler="pbt")
    with pytest.raises(UsageError, match=rf"search.{axis} cannot be changed by pbt"):
        plan(search)


def test_settings_of_losses_and_optimisers_are_mutated(source: Path, tmp_path: Path) -> None:
    axes = {"method.beta": {"uniform": [0.5, 2]}, "method.free_bits": {"uniform": [0, 1]}, **AXES}
    assert plan(wanted(source, tmp_path, axes, "vae", scheduler="pbt")).trials == 6
    dropout = {"method.dropout": {"uniform": [0.1, 0.5]}}
    article = wanted(source, tmp_path, dropout, "gan", scheduler="pbt")
    assert plan(article).trials == 6


def test_the_worst_quarter_takes_over_the_best_and_changes_a_little(source: Path, tmp_path: Path) -> None:
    search = searched(source, tmp_path, trials=8)
    settings = {number: {"train.learning_rate": 1e-3 * (number + 1)} for number in range(8)}
    losses: dict[int, float | None] = {number: float(number) for number in range(7)} | {7: None}
    members = next_members(search, 0, losses, settings)
    assert members == next_members(search, 0, losses, settings)
    donors = {member.trial: member.donor for member in members}
    assert donors == {**{number: number for number in range(6)}, 6: 0, 7: 7}
    rate = members[6].settings["train.learning_rate"]
    assert rate != settings[6]["train.learning_rate"]
    changed = {next_members(search, generation, losses, settings)[6].settings["train.learning_rate"]
               for generation in range(40)}  # fmt: skip
    assert {0.8e-3, 1.2e-3} <= {round(value, 10) for value in changed}
    assert len(changed) > 4, "some are drawn anew"


def test_a_lineage_follows_the_weights() -> None:
    def member(trial: int, donor: int, value: int) -> Member:
        return Member(trial, 0.0, {"a": value}, donor)

    generations = [[member(0, 0, 10), member(1, 0, 11)], [member(0, 1, 20), member(1, 1, 21)]]
    places, first = (12, 24, 36), {0: {"a": 0}, 1: {"a": 1}}
    assert lineage(generations, places, first, 0) == [(12, {"a": 0}), (24, {"a": 11}), (36, {"a": 20})]
    assert lineage(generations, places, first, 1) == [(12, {"a": 0}), (24, {"a": 11}), (36, {"a": 21})]


def test_weights_are_the_donors_and_the_schedule_of_the_winner_gives_its_weights_again(
    source: Path, tmp_path: Path
) -> None:
    search = searched(source, tmp_path / "pbt", keep=9)
    trained(population(search))
    lines = Journal(tmp_path / "pbt" / "trials.jsonl").lines
    assert [lines[number].state for number in range(5)] == ["complete"] * 5
    generations = read(tmp_path / "pbt" / "generations.jsonl")
    assert len(generations) == 4
    for members in generations[:-1]:
        hashes = {member.trial: member.sha256 for member in members}
        moved = [member for member in members if member.donor != member.trial]
        assert moved
        assert all(member.sha256 == hashes[member.donor] for member in moved)
    best = winner(search, list(lines.values()))
    assert best
    finals = Finals(search, best.values, 240, best.schedule)
    trained(finals)
    again = manifest(finals.folder(0))
    theirs = manifest(folder_of(search, best.trial))
    assert again["networks.safetensors"] == theirs["networks.safetensors"]
    assert finals.figures()["val/mse"][0] == best.metric


@pytest.mark.long
def test_a_population_that_is_cut_anywhere_comes_to_the_same(source: Path, tmp_path: Path) -> None:
    whole = searched(source, tmp_path / "whole")
    trained(population(whole))
    expected = (tmp_path / "whole" / "generations.jsonl").read_bytes()
    for turns in (6, 10):
        folder = tmp_path / f"cut-{turns}"
        cut = searched(source, folder)
        conducted = population(cut)
        conducted.__class__ = type("Cut", (type(conducted),), {"left": turns, "next": cut_after})
        with pytest.raises(KeyboardInterrupt):
            trained(conducted)
        if turns == 10:  # between taking over weights and saying so
            kept = (folder / "generations.jsonl").read_bytes()
            (folder / "generations.jsonl").write_bytes(kept[: kept.rfind(b"\n", 0, -1) + 1] + b'{"generat')
        trained(population(searched(source, folder)))
        assert (folder / "generations.jsonl").read_bytes() == expected


def cut_after(self: object) -> object:
    self.left -= 1  # type: ignore[attr-defined]
    if self.left < 0:  # type: ignore[attr-defined]
        raise KeyboardInterrupt
    return super(type(self), self).next()  # type: ignore[misc]


def test_a_member_that_fails_is_out_and_the_others_go_on(source: Path, tmp_path: Path) -> None:
    search = searched(source, tmp_path, trials=4)
    conducted = population(search)
    conducted.first[2]["train.learning_rate"] = 1e30
    trained(conducted)
    lines = Journal(tmp_path / "trials.jsonl").lines
    assert [lines[number].state for number in range(4)] == ["complete", "complete", "failed", "complete"]
    assert "train" in lines[2].why or "number" in lines[2].why
    assert all(member.trial != 2 for members in read(tmp_path / "generations.jsonl") for member in members)
    assert json.loads((tmp_path / "generations.jsonl").read_text().splitlines()[0])["images"] == 60
