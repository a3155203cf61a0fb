"""The page about a search: true to it, complete in itself, unmoved by hostile names, there for a
broken one too.
"""

import html
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.reporting.test_report import HOSTILE, Page, written
from tests.search.asked import wanted
from tests.search.simulated import controller, trained
from tests.training.learn import packed
from udl_dist.reporting.report import report
from udl_dist.search.config import Search
from udl_dist.search.final_runs import final_runs
from udl_dist.search.results import conclude


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Search:
    """A small search from its start to its model."""
    folder = tmp_path_factory.mktemp("searched")
    made = wanted(
        packed(folder / "data"),
        folder / "search",
        trials=9,
        reduction=2,
        final_seeds=2,
        metric="val/mse",
    )
    controlled = controller(made, simulated=False)
    (made.folder / "search.toml").write_text(made.to_toml())
    trained(controlled)
    final = final_runs(made, controlled.planned, controlled.log)
    assert final
    trained(final)
    conclude(made, controlled.planned, controlled.log, io.StringIO())
    return made


@pytest.fixture
def copied(search: Search, tmp_path: Path) -> Path:
    shutil.copytree(
        search.folder, tmp_path / "copied", ignore=shutil.ignore_patterns("checkpoints")
    )
    return tmp_path / "copied"


def test_the_page_tells_trials_plots_the_winner_and_its_figures(
    search: Search, tmp_path: Path
) -> None:
    seen = Page(written(search.folder, tmp_path / "page.html"))
    for line in (search.folder / "trials.jsonl").read_text().splitlines():
        assert f"{json.loads(line)['metric']:.4g}" in seen.text
    figures = json.loads((search.folder / "evaluation.json").read_text())["figures"]
    assert f"{figures['psnr']['value']:.6g} ± {figures['psnr']['sd']:.3g}" in seen.text
    drawn = {
        str(each["aria-label"]).split(": ")[1]
        for each in seen.all("div")
        if each.get("role") == "img"
    }
    assert len(drawn) == len(seen.all("svg")) == 2
    assert "9 of 9 trials ended" in seen.text
    assert "winner.toml" in seen.text
    assert len(seen.all("img")) == len(list((search.folder / "model").glob("*.png")))
    assert "To know first" not in seen.text
    assert all(
        (each.get("src") or each.get("xlink:href") or "#").startswith(("data:", "#"))
        for _, each in seen.tags
    )


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("search.toml", "search.toml cannot be read"),
        ("trials.jsonl", "0 of 9 trials have ended"),
        ("evaluation.json", ""),
        ("winner", "has not been trained on the full budget"),
        ("trials", "9 of 9 trials ended"),
    ],
)
def test_a_search_that_lacks_something_has_a_page_that_says_so(
    broken: str, said: str, copied: Path
) -> None:
    gone = copied / broken
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    text = html.unescape(written(copied, copied / "page.html"))
    assert said in text
    assert ("Evaluation of these runs" in text) == (broken != "evaluation.json")


def test_alarms_of_the_winner_s_runs_stand_at_the_top(copied: Path, tmp_path: Path) -> None:
    (run,) = copied.glob("winner/seed-0")
    with (run / "messages.log").open("a") as log:
        log.write("00:00:01 ALARM: exploding scale after 40 images: latents of size 2e+02\n")
    text = written(copied, tmp_path / "page.html")
    top = Page(text.split('<section id="result"')[0]).text
    assert "seed-0: 00:00:01 ALARM: exploding scale after 40 images" in top


def test_a_search_that_goes_on_or_whose_data_is_gone_has_a_page(
    copied: Path, tmp_path: Path
) -> None:
    journal, source = copied / "trials.jsonl", copied / "search.toml"
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:4]))
    assert "4 of 9 trials have ended: the same command resumes it" in written(
        copied, tmp_path / "page.html"
    )
    source.write_text(source.read_text().replace("/packed", "/nowhere"))
    seen = Page(written(copied, tmp_path / "page.html"))
    assert "cannot be planned again" in seen.text
    assert seen.all("svg"), "what needs no data is there"


def test_names_and_values_that_were_written_into_it_are_text_and_nothing_else(
    copied: Path, tmp_path: Path
) -> None:
    journal = copied / "trials.jsonl"
    first: dict[str, Any] = json.loads(journal.read_text().splitlines()[0])
    hostile = [
        first | {"trial": 9, "state": HOSTILE, "why": HOSTILE},
        first | {"trial": 7.5},
        first | {"metric": HOSTILE},
        first | {"trial": 8, "settings": {HOSTILE: HOSTILE}},
        [HOSTILE],
        {HOSTILE: 1},
    ]
    journal.write_text("".join(json.dumps(line) + "\n" for line in hostile) + journal.read_text())
    figure = {"value": 1.0, "sd": 0.5, "floor": {HOSTILE: HOSTILE}, "protocol": {HOSTILE: HOSTILE}}
    evaluation = {
        "figures": {HOSTILE: figure},
        "runs": {},
        "lacking": [HOSTILE],
        "failed": [HOSTILE],
        "model": HOSTILE,
    }
    (copied / "evaluation.json").write_text(json.dumps(evaluation))
    source = copied / "search.toml"
    for _ in range(2):
        text = written(copied, tmp_path / "page.html")
        seen = Page(text)
        assert len(seen.all("script")) == 1
        assert not any("onerror" in attributes for _, attributes in seen.tags)
        assert "\x1b" not in text
        assert "<script>alert(1)</script>" in seen.text
        source.write_text(source.read_text().replace("val/mse", "val/$x_1^{<script>"))


def test_a_search_in_which_everything_is_damaged_has_a_page(copied: Path, tmp_path: Path) -> None:
    for path in copied.rglob("*"):
        if path.is_file():
            path.write_bytes(b"\xff{[\n" + path.read_bytes()[:20])
    done = report(str(copied), tmp_path / "page.html")
    assert len(done.faults) >= 3
    text = html.unescape((tmp_path / "page.html").read_text())
    assert all(fault in text for fault in done.faults)
