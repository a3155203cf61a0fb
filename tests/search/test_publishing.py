"""A search ends in a model: its winner's runs are measured, the best is exported, and a kill
between costs nothing.
"""

import io
import json
import shutil
from pathlib import Path

import pytest

import udl_dist
from tests.search.asked import wanted
from tests.search.simulated import controller, trained
from udl_dist.errors import UsageError
from udl_dist.evaluation.metric_group import Subject
from udl_dist.evaluation.reconstruction import Reconstruction
from udl_dist.evaluation.settings import MetricSettings
from udl_dist.inference import evaluating, layout
from udl_dist.inference.card import plain
from udl_dist.inference.export import ExportSettings, export
from udl_dist.reporting.compare import compare
from udl_dist.runs.run_folder import RunFolder
from udl_dist.runs.terminal import Screen
from udl_dist.search import trial
from udl_dist.search.config import Search
from udl_dist.search.final_runs import final_runs
from udl_dist.search.planning import plan
from udl_dist.search.publishing import MODEL
from udl_dist.search.results import SearchResult, conclude
from udl_dist.search.session import SearchProgress


@pytest.fixture(scope="module")
def searched(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Search:
    """A search whose trials and final runs have ended, and nothing more."""
    search = wanted(
        source,
        tmp_path_factory.mktemp("searched"),
        trials=2,
        scheduler="none",
        final_seeds=2,
        plots=False,
    )
    controlled = controller(search)
    trained(controlled)
    final = final_runs(search, controlled.planned, controlled.log)
    assert final
    trained(final)
    return search


@pytest.fixture
def search(searched: Search, tmp_path: Path, source: Path) -> Search:
    """The same, to be written to."""
    shutil.copytree(searched.folder, tmp_path, dirs_exist_ok=True)
    for path in tmp_path.glob("winner/*/experiment.toml"):
        path.write_text(path.read_text().replace(str(searched.folder), str(tmp_path)))
    return wanted(source, tmp_path, trials=2, scheduler="none", final_seeds=2, plots=False)


def ended(search: Search, said: io.StringIO | None = None) -> SearchResult:
    return conclude(search, plan(search), controller(search).log, said or io.StringIO())


def stamps(folder: Path) -> dict[str, int]:
    """When each file of what was handed over was written."""
    files = [
        *folder.glob("evaluation.json"),
        *folder.glob("winner/*/evaluation.json"),
        *folder.glob("model/*"),
    ]
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in files}


def test_the_figures_are_those_of_evaluate_and_the_model_that_of_the_best_run(
    search: Search,
) -> None:
    done = ended(search)
    runs = [search.folder / "winner" / f"seed-{seed}" for seed in range(2)]
    of_each = [json.loads((run / "evaluation.json").read_text())["figures"] for run in runs]
    values = [figures["psnr"]["value"] for figures in of_each]
    entry = done.published.figures["psnr"]
    assert entry["value"] == pytest.approx(sum(values) / 2)
    assert entry["sd"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    assert (entry["protocol"]["runs"], entry["protocol"]["n"]) == (2, 18)
    assert "weights" not in entry["protocol"], "of two runs, it is no protocol of their mean"
    alone = evaluating.evaluate(
        udl_dist.load(runs[0]), MetricSettings(), None, lambda done, total: None
    )
    assert alone.as_dict()["figures"] == of_each[0]

    last = [(RunFolder(run).finished() or {})["figures"]["val/mse"] for run in runs]
    best = min(range(2), key=lambda seed: last[seed])
    model, of_run = udl_dist.load(search.folder / MODEL), udl_dist.load(runs[best])
    latents = [[0.5] * model.latent_dim]
    assert model.decode(latents).equal(of_run.decode(latents))
    assert f"# {plain(search.folder.name)}" in (search.folder / MODEL / layout.CARD).read_text()

    text = "\n".join(done.lines())
    assert "psnr" in text
    assert f'udl_dist.load("{search.folder}/model"), from seed-{best}' in text
    assert "no representation: its images have no labels" in text
    as_json = done.as_dict()
    assert as_json["figures"]["psnr"] == {"mean": entry["value"], "sd": entry["sd"]}
    assert as_json["model"] == str(search.folder / MODEL)
    assert done.exit_code == 0


def test_a_search_folder_stands_for_the_best_run_of_its_winner(
    search: Search, tmp_path: Path
) -> None:
    (search.folder / "search.toml").write_text(search.to_toml())
    best = search.folder / "winner" / ended(search).published.model
    opened = udl_dist.load(search.folder)
    assert opened.origin.folder == best
    assert f"{search.folder} is a search: this is the best run of its winner" in opened.origin.notes
    export(opened, tmp_path / "exported", ExportSettings())
    latents = [[0.5] * opened.latent_dim]
    assert (
        udl_dist.load(tmp_path / "exported")
        .decode(latents)
        .equal(udl_dist.load(best).decode(latents))
    )
    trial = next((search.folder / "trials").glob("*"))
    compared = compare([str(search.folder), str(trial)], tmp_path / "compared.png")
    assert compared.folders == [str(best), str(trial)]

    shutil.rmtree(search.folder / "winner")
    for act in (
        lambda: udl_dist.load(search.folder),
        lambda: compare([str(search.folder), str(trial)], tmp_path),
    ):
        with pytest.raises(UsageError, match=r"is a search without a trained winner: .*trials/"):
            act()


def test_what_takes_time_after_the_last_trial_is_said(source: Path, tmp_path: Path) -> None:
    search = wanted(source, tmp_path, trials=2, scheduler="none", final_seeds=2)
    controlled = controller(search)
    trained(controlled)
    final = final_runs(search, controlled.planned, controlled.log)
    assert final
    out = io.StringIO()
    SearchProgress(search, 2, controlled.log, Screen(out)).show(final.progress())
    task = final.next()
    assert task
    final.arrived(task.trial, 120, {})
    training = "training the winner on the full budget"
    assert final.progress() == f"{training}: 0 of 2 runs complete · winner/seed-0 120 of 240 images"
    final.ended(task.trial, trial.train(task, None, lambda: None))
    trained(final)
    assert final.progress() == f"{training}: 2 of 2 runs complete"
    conclude(search, controlled.planned, controlled.log, out)
    said = out.getvalue().splitlines()
    assert said[0] == f"{training}: 0 of 2 runs complete"
    assert (
        said.index("drawing the plots of the search")
        < said.index("evaluating the winner, seed-0: 1 of 1 parts") + 1
    )
    assert any(line.startswith("exporting the winner, seed-") for line in said)


@pytest.mark.parametrize("lost", ["winner/seed-1/evaluation.json", "evaluation.json", "model", ""])
def test_what_a_kill_left_undone_is_made_and_nothing_else(lost: str, search: Search) -> None:
    first, gone = ended(search).as_dict(), search.folder / lost
    before = stamps(search.folder)
    if lost:
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    said = io.StringIO()
    assert ended(search, said).as_dict() == first
    made = {
        name.split("/")[0] if lost == "model" else name
        for name, stamp in stamps(search.folder).items()
        if before[name] != stamp
    }
    expected = {lost} - {""}
    if lost == "evaluation.json":  # it says what the runs' metrics lack: they are measured again
        expected |= {f"winner/seed-{seed}/evaluation.json" for seed in range(2)}
    assert made == expected
    assert said.getvalue().count("evaluating the winner") == sum(
        "evaluation.json" in name for name in made
    ) - (lost == "evaluation.json")


def test_what_cannot_be_had_is_said_and_had_as_soon_as_it_can(
    search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacks(cls: type, subject: Subject) -> str:
        return "it needs a package: pip install it"

    with monkeypatch.context() as patch:
        patch.setattr(Reconstruction, "lacking", classmethod(lacks))
        without = ended(search)
    assert without.exit_code == 0
    assert "no figures" in "\n".join(without.lines()) or without.published.failed
    assert without.published.model, "figures that cannot be had cost no model"
    assert "psnr" in ended(search).published.figures


def test_it_can_be_switched_off(search: Search) -> None:
    done = ended(search.replace(evaluate=False, export=False))
    assert (done.published.figures, done.published.model, done.exit_code) == ({}, "", 0)
    assert not stamps(search.folder)
    assert done.final["val/mse"].runs == 2


def test_a_model_that_cannot_be_exported_is_reported_and_ends_with_4(search: Search) -> None:
    (search.folder / MODEL).mkdir()
    (search.folder / MODEL / "notes.txt").write_text("mine")
    done = ended(search)
    assert done.exit_code == 4
    assert "no model is exported" in "\n".join(done.lines())
    assert "psnr" in done.published.figures
    assert [path.name for path in (search.folder / MODEL).iterdir()] == ["notes.txt"], (
        "what is there stays"
    )


def test_the_model_of_another_winner_gives_way(search: Search) -> None:
    ended(search)
    config = search.folder / MODEL / layout.CONFIG
    config.write_text(config.read_text().replace('"checkpoint": "', '"checkpoint": "other '))
    ended(search)
    assert "other " not in config.read_text()
