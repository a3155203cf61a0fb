"""The page about a run: complete in itself, true to the run, unmoved by hostile names, there for a
broken run too.
"""

import html
import json
import re
import shutil
import subprocess
import time
from html.parser import HTMLParser
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.trained import METHODS
from udl_dist.errors import TrainingError, UsageError
from udl_dist.evaluation.settings import MetricSettings
from udl_dist.inference.following import follow
from udl_dist.reporting import page as pages
from udl_dist.reporting import report as reports
from udl_dist.reporting.page import MOST_BYTES
from udl_dist.reporting.report import report
from udl_dist.runs.run_folder import RunFolder

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)> ../../etc \x1b[31mred\x07"


class Page(HTMLParser):
    """Every tag and its attributes, and all text outside scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._within = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._within = tag

    def handle_endtag(self, tag: str) -> None:
        self._within = ""

    def handle_data(self, data: str) -> None:
        if self._within not in ("script", "style"):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module", params=METHODS)
def run(request: pytest.FixtureRequest, trained: dict[str, Path]) -> Path:
    return trained[request.param]


@pytest.fixture(scope="module")
def text(run: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of the run."""
    return written(run, tmp_path_factory.mktemp("page") / "page.html")


def written(run: Path, out: Path) -> str:
    done = report(str(run), out)
    assert done.total_bytes == out.stat().st_size < MOST_BYTES
    return out.read_text()


def test_the_page_tells_figures_settings_and_pictures_of_the_run(run: Path, text: str) -> None:
    seen = Page(text)
    last = json.loads((run / "curves.jsonl").read_text().splitlines()[-1])
    for name, value in last.items():
        if name.startswith("val/"):
            assert name in seen.text
            assert f"{value:.6g}" in seen.text
    assert "method.latent_dim" in seen.text
    assert len(seen.all("img")) == len(list((run / "pictures").iterdir()))
    assert sum("hidden" in image for image in seen.all("img")) == len(seen.all("img")) - len(
        seen.all("input")
    )
    assert len(seen.all("svg")) >= 4
    assert "complete" in seen.text
    assert "Means over 18 held-out images" in seen.text
    assert "trained from 0 images on with" in seen.text
    assert "workers 1, backend none, device cpu" in seen.text


def test_pictures_come_first_and_the_figure_that_chooses_the_best_leads(
    run: Path, text: str, trained: dict[str, Path]
) -> None:
    best = {"ae": "val/mse", "vae": "val/negative_elbo", "gan": "val/frechet_detail"}
    (name,) = (best[method] for method, folder in trained.items() if folder == run)
    assert re.findall(r'<section id="(\w+)"', text)[:3] == ["pictures", "metrics", "curves"]
    assert re.findall(r'<th scope="row">([^<]*)</th>', text)[0] == name
    assert re.findall(r"<figcaption>([^<]*)</figcaption>", text)[0] == name.removeprefix("val/")


def test_the_page_says_what_a_figure_cannot_see_and_where_better_samples_are(
    trained: dict[str, Path],
) -> None:
    gan, vae = (
        Page(written(trained[name], trained[name] / "page.html")).text for name in ("gan", "vae")
    )
    assert "val/frechet_8x8 cannot see anything finer than 8×8 pixels: blur" in gan
    assert f"udl sample {trained['vae']} draws from a mixture over the codes" in vae
    assert "draws from a mixture" not in gan


def test_a_failed_run_says_so_at_the_top(trained: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(trained["gan"], tmp_path / "run"))
    (folder / "result.json").unlink()
    (folder / "messages.log").write_text(
        "00:00:00 resumed\n00:00:01 ALARM: the discriminator wins after 40 images\n"
    )
    RunFolder(folder).fail(
        TrainingError("dead generator after 480 images: lower train.learning_rate")
    )
    text = written(folder, tmp_path / "page.html")
    top = Page(text.split('<section id="pictures"')[0]).text
    failed, alarm = (
        top.index("The run failed after 480 images: dead generator"),
        top.index("ALARM: the discriminator"),
    )
    assert failed < alarm
    assert "failed" in Page(text).text.split("To know first")[0]
    (folder / "failure.json").write_text("{}")  # damaged: the page is there nevertheless
    assert "The run failed" not in written(folder, tmp_path / "page.html")


def test_nothing_is_fetched_and_everything_has_words(text: str) -> None:
    seen = Page(text)
    for tag, attributes in seen.tags:
        for name in ("src", "href", "xlink:href", "data", "action"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/")), (tag, attributes)
    assert not re.search(r"@import|url\((?!#)", text)
    assert not {"link", "iframe", "object", "embed", "form", "base"} & {tag for tag, _ in seen.tags}
    assert all(image["alt"] for image in seen.all("img"))
    labels = {label["for"] for label in seen.all("label")}
    assert {slider["id"] for slider in seen.all("input")} == labels
    assert all(str(slider["aria-valuetext"]).startswith("after ") for slider in seen.all("input"))
    drawn = [attributes for tag, attributes in seen.tags if attributes.get("role") == "img"]
    assert all(attributes["aria-label"] for attributes in drawn)
    assert [level for level in (tag for tag, _ in seen.tags) if level == "h1"] == ["h1"]
    ids = [
        attributes["id"]
        for _, attributes in seen.tags
        if attributes.get("id") and "film" in str(attributes["id"])
    ]
    assert len(ids) == len(set(ids))


def test_names_from_data_are_text_and_nothing_else(
    trained: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "<script>alert(1)</script>"[:8]
    shutil.copytree(trained["vae"], folder)
    settings = folder / "experiment.toml"
    settings.write_text(
        re.sub(
            r"(?m)^(source|project) = .*$",
            lambda found: f"{found[1]} = {json.dumps(HOSTILE)}",
            settings.read_text(),
        )
    )
    (folder / "data.json").write_text(json.dumps({HOSTILE: HOSTILE}))
    (folder / "messages.log").write_text(f"00:00:00 ALARM: {HOSTILE}\n")
    point = json.loads((folder / "curves.jsonl").read_text().splitlines()[-1])
    with (folder / "curves.jsonl").open("a") as file:
        file.write(
            json.dumps(point | {f"val/{HOSTILE}": 1.0, "train/$x_1^{$": 2.0, "val/_x": 1.0}) + "\n"
        )
    (folder / "environment.jsonl").write_text(
        json.dumps({"images": 7, HOSTILE: HOSTILE}) + "\n[]\n{"
    )
    figure = {"value": 1.0, "sd": 0.5, "floor": {HOSTILE: HOSTILE}, "protocol": {HOSTILE: HOSTILE}}
    (folder / "evaluation.json").write_text(json.dumps({"figures": {HOSTILE: figure}}))
    text = written(folder, tmp_path / "page.html")
    seen = Page(text)
    assert len(seen.all("script")) == 1
    assert not any("onerror" in attributes for _, attributes in seen.tags)
    assert all(image["src"] != "x" for image in seen.all("img"))
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "<script>alert(1)</script>" in seen.text
    assert "1 ± 0.5" in seen.text


def test_figures_of_checkpoints_are_curves_and_damaged_ones_are_named(
    trained: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(trained["ae"], tmp_path / "ae"))
    follow(
        str(folder),
        "cpu",
        MetricSettings(families=("reconstruction",), noise=()),
        "",
        lambda *_: None,
        print,
    )
    figures = {
        path: json.loads(path.read_text())["figures"]["psnr"]["value"]
        for path in sorted((folder / "followed").glob("[0-9]*.json"))
    }
    first, *_, last = figures.values()
    said = f"psnr from {first:.4g} to {last:.4g}"
    seen = Page(written(folder, tmp_path / "page.html"))
    assert "psnr, udl evaluate --follow" in seen.text and said in seen.text
    next(iter(figures)).write_text("torn")
    assert (
        f"{next(iter(figures)).name} is damaged"
        in Page(written(folder, tmp_path / "page.html")).text
    )


def test_what_all_figures_depend_on_is_reported_once(
    trained: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(trained["ae"], tmp_path / "run")
    entries = {
        name: {"value": 1.0, "protocol": {"data": "of-all", "seed": seed, **own}}
        for name, seed, own in (
            ("mse", 1, {}),
            ("recall", 2, {"extractor": "of-two", "k": 7}),
            ("precision", 3, {"extractor": "of-two"}),
        )
    }
    (tmp_path / "run" / "evaluation.json").write_text(json.dumps({"figures": entries}))
    text = Page(written(tmp_path / "run", tmp_path / "page.html")).text
    assert text.count("of-all") == 1
    assert "Protocol of all of these: data of-all." in text
    assert text.count("of-two") == 1 and "Where it is named: extractor of-two." in text
    assert "seed 2, extractor, k 7" in text and "seed 3, extractor" in text and "seed 1" in text


@pytest.mark.parametrize(
    "broken",
    [
        "curves.jsonl",
        "checkpoints",
        "pictures",
        "data.json",
        "result.json",
        "experiment.toml",
    ],
)
def test_a_run_that_lacks_something_has_a_page_that_says_so(
    trained: dict[str, Path], tmp_path: Path, broken: str
) -> None:
    shutil.copytree(trained["ae"], tmp_path / "run")
    gone = tmp_path / "run" / broken
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    said = {
        "curves.jsonl": "There are no curves",
        "checkpoints": "there is no checkpoint",
        "pictures": "There are no pictures",
        "result.json": "not complete",
        "data.json": "fingerprint",
        "experiment.toml": "experiment.toml is missing: the settings are not known",
    }
    assert said[broken] in html.unescape(written(tmp_path / "run", tmp_path / "page.html"))


def test_a_run_in_which_everything_is_damaged_has_a_page(
    trained: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(trained["ae"], tmp_path / "run")
    for path in (tmp_path / "run").rglob("*"):
        if path.is_file():
            path.write_bytes(b"\xff{[" + path.read_bytes()[:20])
    done = report(str(tmp_path / "run"), tmp_path / "page.html")
    assert len(done.faults) > 4
    text = html.unescape((tmp_path / "page.html").read_text())
    for fault in done.faults:
        assert fault in text


def test_a_page_that_would_be_too_large_leaves_its_pictures_out_and_says_so(
    trained: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "MOST_BYTES", 1000)
    done = report(str(trained["vae"]), tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "data:image" not in text
    for said in (done.faults[-1], text):
        assert "the pictures were left out" in said


def test_only_a_run_has_a_page(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a run folder"):
        report(str(tmp_path))
    with pytest.raises(UsageError, match="is not a run folder"):
        report(str(tmp_path / "nowhere"))


def test_many_large_pictures_are_made_small_and_fewer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "MOST_PICTURE_BYTES", 400_000)
    monkeypatch.setattr(pages, "WIDEST", 400)
    random = np.random.default_rng(0)
    listed = []
    for number in range(6):
        Image.fromarray(random.integers(0, 256, (500, 500, 3), dtype=np.uint8)).save(
            tmp_path / f"{number}.png"
        )
        listed.append((number, tmp_path / f"{number}.png"))
    (tmp_path / "odd.png").write_bytes(b"GIF89a")
    films, faults = pages.films({"samples": [*listed, (99, tmp_path / "odd.png")]})
    frames = films[0]["frames"]
    assert sum(len(frame["data"]) for frame in frames) <= pages.MOST_PICTURE_BYTES
    assert 1 <= len(frames) < 6
    assert frames[-1]["said"] == "after 5 images"
    assert "odd.png cannot be read" in faults[0]


def shown(path: Path, folder: Path) -> tuple[str, str, list[str]]:
    """The document that Chromium makes of a page, what it logs, and every address it asks for."""
    assert CHROMIUM
    net = folder / "net.json"
    done = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            f"--user-data-dir={folder / 'profile'}",
            "--enable-logging=stderr",
            f"--log-net-log={net}",
            "--dump-dom",
            path.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    log: dict[str, Any] = json.loads(net.read_text())
    asked = {event["params"]["url"] for event in log["events"] if "url" in event.get("params", {})}
    own = re.compile(
        r"https?://([a-z0-9-]+\.)*(google|googleapis|gstatic|gvt1)\.com/"
    )  # the browser's, on any page
    others = (
        url for url in asked if not url.startswith(("data:", path.as_uri())) and not own.match(url)
    )
    return done.stdout, done.stderr, sorted(others)


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium here: apt-get install chromium")
def test_chromium_shows_the_page_without_a_complaint_or_a_request_and_the_slider_moves(
    trained: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = pages._text

    def with_a_hand(name: str) -> str:
        moved = (
            "const s = document.querySelector('input'); s.value = 0; s.dispatchEvent(new"
            " Event('input'));"
        )
        return text(name) + (moved if name == "film.js" else "")

    monkeypatch.setattr(pages, "_text", with_a_hand)
    report(str(trained["vae"]), tmp_path / "page.html")
    document, said, asked = shown(tmp_path / "page.html", tmp_path)
    assert "CONSOLE" not in said, said
    assert asked == []
    seen = Page(document)
    first, *others = [
        image for image in seen.all("img") if str(image["alt"]).startswith("reconstruction")
    ]
    assert "hidden" not in first
    assert all("hidden" in image for image in others)
    assert str(first["data-said"]) in seen.text
    assert seen.all("input")[0]["aria-valuetext"] == first["data-said"]


def test_a_page_is_written_again_while_somebody_trains(
    trained: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "FOLLOW_SECONDS", 1)
    folder = RunFolder(shutil.copytree(trained["vae"], tmp_path / "run"))
    page = tmp_path / "page.html"
    said: list[str] = []
    with folder.held():
        follower = Thread(target=reports.follow, args=(str(folder.path), page, said.append))
        follower.start()
        while not page.exists() or b"</html>" not in page.read_bytes():
            time.sleep(0.01)
        assert '<meta http-equiv="refresh" content="1">' in page.read_text()
        folder.say("a message that comes while it trains")
        while "a message that comes while it trains" not in page.read_text():
            time.sleep(0.01)
    follower.join()
    assert (
        "</html>" in page.read_text() and "refresh" not in page.read_text().partition("</head>")[0]
    )
    assert said == [f"the page is written every 1 s until the run ends, or Ctrl-C: {page}"]
