"""The only room that knows Weights & Biases. Training never waits for it: a thread takes points
from a queue.

The curves file is the record of truth; what W&B gets is a copy, online where there is a key and the
server answers, else offline for a later `wandb sync`.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from udl_dist.core.config_schema import as_path, setting
from udl_dist.errors import UsageError
from udl_dist.runs import wandb_environment

INIT_SECONDS = 8.0
FINISH_SECONDS = 20.0
STARTS = 3  # of W&B's service, in one start of ours
Item = tuple[int, dict[str, Any]]  # images, and figures or pictures


@dataclass(frozen=True)
class TrackSettings:
    mode: Literal["auto", "online", "offline", "off"] = setting(
        "auto",
        "Weights & Biases: auto is what WANDB_MODE or `wandb offline` says, else online where there"
        " is a key and the server answers, else offline",
    )
    project: str = setting("udl-dist", "the W&B project")
    group: str = setting("", "the W&B group; empty: none")
    key_file: str = setting(
        "", "a file that holds the W&B key; empty: W&B's own ways (environment, netrc)"
    )
    pictures: bool = setting(False, "also send the picture grids")


class Tracker:
    """One W&B run on its own thread; `say` gets one line for people where there is something to
    tell.
    """

    def __init__(
        self,
        settings: TrackSettings,
        folder: Path,
        config: dict[str, Any],
        after_images: int,
        say: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._folder = folder
        self._config = config
        # the images of the last point that W&B was given, in any start
        self._sent = folder / "wandb" / "sent"
        self._after_images = _number_in(self._sent, after_images)
        self._say = say
        self._queue: queue.SimpleQueue[Item | None] = queue.SimpleQueue()
        self._ended = False  # the last item has come
        self._kept: Path | None = None  # where W&B keeps what it was given
        self._thread = threading.Thread(target=self._serve, daemon=True, name="tracker")
        if settings.mode != "off":
            self._thread.start()

    def point(self, images: int, figures: dict[str, float]) -> None:
        """Hand over one point of the curves."""
        if images > self._after_images:
            self._queue.put((images, dict(figures)))

    def picture(self, images: int, name: str, path: Path) -> None:
        """Hand over a picture, if the settings ask for pictures."""
        if self._settings.pictures and images > self._after_images:
            self._queue.put((images, {name: path}))

    def close(self) -> None:
        """Let the last points go out, for a bounded time."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join(INIT_SECONDS + FINISH_SECONDS)
            if self._thread.is_alive():
                self._say(f"W&B did not end in time and may miss points; {self._cure()}")

    def _serve(self) -> None:
        """Give W&B what comes; when its service dies begin again, offline, with all that was given
        since the start.

        Whatever W&B does the run goes on: it is told, not hidden.
        """
        import wandb

        given: list[Item] = []
        for starts in range(1, STARTS + 1):
            try:
                run = self._start(wandb, starts > 1)
                for item in given:
                    self._log(wandb, run, item)
                while not self._ended and (new := self._queue.get()) is not None:
                    given.append(new)
                    self._log(wandb, run, new)
                self._ended = True
                run.finish()
                return
            except Exception as error:
                why = " ".join(str(error).split())[:200] or type(error).__name__
                with contextlib.suppress(Exception):
                    wandb.teardown()
        self._say(f"W&B stopped and may miss points ({why}); {self._cure()}")

    def _log(self, wandb: Any, run: Any, item: Item) -> None:
        images, values = item
        sent = {
            key: wandb.Image(str(value)) if isinstance(value, Path) else value
            for key, value in values.items()
        }
        run.log({"images": images, **sent})
        self._sent.write_text(str(images))

    def _cure(self) -> str:
        upload = f"; to upload what W&B has kept: wandb sync {self._kept}" if self._kept else ""
        return f"every point is in curves.jsonl{upload}"

    def _start(self, wandb: Any, again: bool) -> Any:
        key, online, why = "", False, ""
        if self._settings.mode != "offline" and not again:
            # what `wandb login --host` has set is in it
            base = wandb.setup(wandb.Settings(silent=True)).settings
            key = (
                read_key(self._settings)
                if self._settings.key_file
                else wandb_environment.key_for(base.base_url)
            )
            ways = {"http": base.http_proxy, "https": base.https_proxy}
            proxies = {scheme: way for scheme, way in ways.items() if way}
            why = (
                wandb_environment.why_unreachable(base.base_url, key, proxies)
                if key
                else "there is no key"
            )
            online = not why
            if self._settings.mode == "online" and why:
                self._say(f"W&B is offline although online was asked: {why}")
            why = f" ({why})" if key and why else ""
        run = wandb.init(
            project=self._settings.project,
            group=self._settings.group or None,
            name=self._folder.name,
            id=self._run_id(),
            resume="allow" if online else None,
            dir=str(self._folder),
            config=self._config,
            mode="online" if online else "offline",
            settings=wandb.Settings(
                api_key=key or None,
                init_timeout=INIT_SECONDS,
                console="off",
                silent=True,
                disable_git=True,
                save_code=False,
                x_disable_stats=True,
            ),
        )
        run.define_metric("images")
        run.define_metric("*", step_metric="images")
        self._kept = Path(run.dir).parent
        if not online:
            self._say(
                f"W&B is offline{' now' if again else why}; to upload: wandb sync {self._kept}"
            )
        return run

    def _run_id(self) -> str:
        """The same id for every start of the run, kept in the run folder."""
        kept = self._folder / "wandb" / "run_id"
        if not kept.exists():
            kept.parent.mkdir(exist_ok=True)
            kept.write_text(uuid.uuid4().hex[:12])
        return kept.read_text().strip()


def read_key(settings: TrackSettings) -> str:
    """The key in `track.key_file`; raise UsageError if it cannot be read. Checked before a run
    starts.
    """
    try:
        return as_path(settings.key_file).read_text().strip()
    except OSError as error:
        raise UsageError(
            f"cannot read track.key_file {settings.key_file}: {error.strerror}"
        ) from None


def resolved(settings: TrackSettings) -> tuple[TrackSettings, str]:
    """The settings with the mode that W&B's own variables and files ask for, where ours leaves it
    open; and a line.
    """
    asked, where = wandb_environment.mode_asked()
    if not asked or asked == settings.mode:
        return settings, ""
    if settings.mode != "auto":
        return settings, f"W&B: track.mode = {settings.mode} counts, not {where}"
    return replace(settings, mode=asked), f"W&B is {asked}: {where}"  # type: ignore[arg-type]


def _number_in(path: Path, otherwise: int) -> int:
    text = path.read_text() if path.exists() else ""
    return int(text) if text.isdecimal() else otherwise
