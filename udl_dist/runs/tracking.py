"""Weights & Biases; the only file that imports wandb. Training never waits for it.

A thread sends points from a queue: online with a key and a server that answers, else offline for a
later `wandb sync`. The curves file of the run is the record; W&B gets a copy.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from udl_dist.core.config_schema import as_path
from udl_dist.errors import UsageError
from udl_dist.runs import wandb_environment
from udl_dist.runs.settings import TrackSettings

# With a server that does not answer, W&B itself waits 90 s in `init`, and in `finish` for ever.
INIT_SECONDS = 8.0
FINISH_SECONDS = 20.0
STARTS = 3  # of W&B's service, in one start of a run: it is a process that may be killed
Item = tuple[int, dict[str, Any]]  # images seen, and metrics or pictures by name


class Tracker:
    """One W&B run, on its own thread; `say` gets lines for the messages of the run."""

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
        # The images of the last point that W&B got, in any start of the run.
        self._sent = folder / "wandb" / "sent"
        sent = self._sent.read_text() if self._sent.exists() else ""
        self._after_images = int(sent) if sent.isdecimal() else after_images
        self._say = say
        # Without a bound, so that training never waits: a run has some hundred points.
        self._queue: queue.SimpleQueue[Item | None] = queue.SimpleQueue()
        self._ended = False  # the last item was sent
        self._wandb_folder: Path | None = None
        self._thread = threading.Thread(target=self._serve, daemon=True, name="tracker")
        if settings.mode != "off":
            self._thread.start()

    def point(self, images: int, metrics: dict[str, float]) -> None:
        """Queue one point of the curves."""
        # A resumed run makes points again that an earlier start has sent.
        if images > self._after_images:
            self._queue.put((images, dict(metrics)))

    def picture(self, images: int, name: str, path: Path) -> None:
        """Queue a picture, if track.pictures is set."""
        if self._settings.pictures and images > self._after_images:
            self._queue.put((images, {name: path}))

    def close(self) -> None:
        """Wait for the last points, for a bounded time."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join(INIT_SECONDS + FINISH_SECONDS)
            if self._thread.is_alive():
                self._say(f"W&B did not end in time and may miss points; {self._cure()}")

    def _serve(self) -> None:
        """Send what is queued; if W&B's service dies, start again offline and send everything.

        An error of W&B is reported and never ends the run.
        """
        import wandb

        sent: list[Item] = []  # all of it, for the next start of the service
        for starts in range(1, STARTS + 1):
            try:
                run = self._start(wandb, starts > 1)
                for item in sent:
                    self._log(wandb, run, item)
                # If `finish` failed, the last item is in `sent`, and no other will come.
                while not self._ended and (new := self._queue.get()) is not None:
                    sent.append(new)
                    self._log(wandb, run, new)
                self._ended = True
                run.finish()
                return
            except Exception as error:  # W&B raises many kinds, also those of its service
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
        # Afterwards: after a kill in between a point is sent twice rather than never.
        self._sent.write_text(str(images))

    def _cure(self) -> str:
        upload = (
            f"; to upload what W&B has stored: wandb sync {self._wandb_folder}"
            if self._wandb_folder
            else ""
        )
        return f"every point is in curves.jsonl{upload}"

    def _key(self, wandb: Any) -> tuple[str, str]:
        """The key, and why W&B's server cannot be used with it; "" if it can."""
        # Not from the environment alone: this includes what `wandb login --host` has set.
        base = wandb.setup(wandb.Settings(silent=True)).settings
        if self._settings.key_file:
            key = read_key(self._settings)
        else:
            key = wandb_environment.key_for(base.base_url)
        if not key:
            return "", "there is no key"
        used = {"http": base.http_proxy, "https": base.https_proxy}
        proxies = {scheme: proxy for scheme, proxy in used.items() if proxy}
        return key, wandb_environment.why_unreachable(base.base_url, key, proxies)

    def _start(self, wandb: Any, again: bool) -> Any:
        key, why, online = "", "", self._settings.mode != "offline" and not again
        if online:
            # Asked first, as W&B does not fall back to offline after an `init` that failed online
            # (wandb#9865).
            key, why = self._key(wandb)
            online = not why
            if self._settings.mode == "online" and why:
                self._say(f"W&B is offline although track.mode = online: {why}")
        run = wandb.init(
            project=self._settings.project,
            group=self._settings.group or None,
            name=self._folder.name,
            id=self._run_id(),
            resume="allow" if online else None,
            dir=str(self._folder),
            config=self._config,
            mode="online" if online else "offline",
            # No output, no code and no hardware statistics of the machine: only our points.
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
        # An axis of our own: W&B drops points whose own step goes back (wandb#4482, #9449).
        run.define_metric("images")
        run.define_metric("*", step_metric="images")
        self._wandb_folder = Path(run.dir).parent
        if not online:
            # Without a key offline is what one expects, and needs no reason.
            since = " now" if again else f" ({why})" if key else ""
            self._say(f"W&B is offline{since}; to upload: wandb sync {self._wandb_folder}")
        return run

    def _run_id(self) -> str:
        """One id for every start of the run, from a file in the run folder."""
        file = self._folder / "wandb" / "run_id"
        if not file.exists():
            file.parent.mkdir(exist_ok=True)
            file.write_text(uuid.uuid4().hex[:12])
        return file.read_text().strip()


def read_key(settings: TrackSettings) -> str:
    """The key in `track.key_file`; raises UsageError if it cannot be read."""
    try:
        return as_path(settings.key_file).read_text().strip()
    except OSError as error:
        raise UsageError(
            f"cannot read track.key_file {settings.key_file}: {error.strerror}"
        ) from None


def resolved(settings: TrackSettings) -> tuple[TrackSettings, str]:
    """The settings with W&B's own mode where track.mode is auto, and a line that says so."""
    # Decided here, because W&B ignores WANDB_MODE if `init` is given a mode.
    asked, where = wandb_environment.mode_asked()
    if not asked or asked == settings.mode:
        return settings, ""
    if settings.mode != "auto":
        return settings, f"W&B: track.mode = {settings.mode} counts, not {where}"
    return replace(settings, mode=asked), f"W&B is {asked}: {where}"  # type: ignore[arg-type]
