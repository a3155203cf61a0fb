"""A checkpoint is complete or absent, and a damaged one is never taken for whole."""

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.bench import saves
from tests.training import gloo
from udl_dist.errors import TrainingError
from udl_dist.training import checkpoint

FILES = {
    "networks": {"a": torch.arange(12.0).reshape(3, 4), "b": torch.tensor(3)},
    "average": {"a": torch.ones(2)},
}


def saved(folder: Path, *images: int, figures: dict[int, float] | None = None) -> None:
    for count in images:
        facts = {"figures": {"val/mse": (figures or {})[count]}} if figures else {"figures": {}}
        checkpoint.save(folder, count, FILES, facts)


def test_what_is_saved_is_loaded_to_the_bit(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 512, FILES, {"figures": {"val/mse": 0.5}})
    files, facts = checkpoint.load(path)
    assert facts == {"images": 512, "figures": {"val/mse": 0.5}}
    assert {name: sorted(tensors) for name, tensors in files.items()} == {
        "networks": ["a", "b"],
        "average": ["a"],
    }
    assert all(
        torch.equal(files[name][key], value)
        for name, tensors in FILES.items()
        for key, value in tensors.items()
    )
    assert files["networks"]["b"].dtype == torch.int64
    assert not list(tmp_path.glob(".*")), "no temporary is left"


def test_a_transposed_tensor_is_saved_as_it_is_seen(tmp_path: Path) -> None:
    seen = torch.arange(6.0).reshape(2, 3).t()
    files, _ = checkpoint.load(checkpoint.save(tmp_path, 1, {"networks": {"w": seen}}, {}))
    assert torch.equal(files["networks"]["w"], seen)


@pytest.mark.parametrize(
    "damage",
    [
        "bit",
        "cut",
        "gone",
        "manifest",
        "extra",
        "symlink",
        "linked",
        "pickle",
        "forged",
        "no format",
    ],
)
def test_any_damage_is_noticed_and_the_one_before_is_taken(tmp_path: Path, damage: str) -> None:
    saved(tmp_path, 100, 200)
    newest = checkpoint.path_of(tmp_path, 200)
    weights, manifest = newest / "networks.safetensors", newest / "manifest.json"
    if damage == "bit":
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    elif damage == "cut":
        os.truncate(weights, weights.stat().st_size - 1)
    elif damage == "gone":
        weights.unlink()
    elif damage == "manifest":
        manifest.write_text("{")
    elif damage == "extra":
        (newest / "more.safetensors").write_bytes(b"")
    elif damage == "symlink":
        weights.rename(tmp_path / "elsewhere")
        weights.symlink_to(tmp_path / "elsewhere")
    elif damage == "pickle":
        torch.save(FILES, weights)
    elif damage == "linked":
        newest.rename(tmp_path / "elsewhere")
        newest.symlink_to(tmp_path / "elsewhere")
    elif damage == "forged":  # a pickle that the manifest vouches for
        torch.save(FILES, weights)
        entry = {
            "bytes": weights.stat().st_size,
            "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        }
        reported = json.loads(manifest.read_text())
        manifest.write_text(
            json.dumps(reported | {"files": reported["files"] | {weights.name: entry}})
        )
    elif damage == "no format":
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 0}))
    said: list[str] = []
    assert checkpoint.newest(tmp_path, said.append) == checkpoint.path_of(tmp_path, 100)
    assert len(said) == 1
    assert str(newest) in said[0]
    assert "\n" not in said[0]
    with pytest.raises(TrainingError):
        checkpoint.load(newest)


def test_one_of_a_newer_udl_dist_is_refused_by_name_and_never_passed_over(tmp_path: Path) -> None:
    saved(tmp_path, 100, 200)
    manifest = checkpoint.path_of(tmp_path, 200) / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 2}))
    said: list[str] = []
    expected = (
        r"200 was written by a newer udl-dist: its format is 2, this version knows 1: install that"
        r" version, or"
    )
    for act in (
        lambda: checkpoint.newest(tmp_path, said.append),
        lambda: checkpoint.load(manifest.parent),
    ):
        with pytest.raises(TrainingError, match=expected):
            act()
    assert not said
    assert len(checkpoint.complete(tmp_path)) == 2


def test_everything_is_on_the_disk_before_the_name_and_the_name_before_it_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a power cut would leave: contents that were fsynced, and names in folders that were."""
    lasting: dict[Path, bytes] = {}
    acts: list[str] = []
    real_fsync, real_rename = os.fsync, Path.rename

    def fsync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        acts.append(f"fsync {path.name}")
        lasting[path] = (
            path.read_bytes()
            if path.is_file()
            else b" ".join(sorted(map(os.fsencode, os.listdir(path))))
        )
        real_fsync(descriptor)

    def rename(path: Path, target: Path) -> Path:
        acts.append(f"rename to {target.name}")
        assert lasting[path] == b" ".join(sorted(map(os.fsencode, os.listdir(path)))), (
            "a name in it is not fsynced"
        )
        for file in path.iterdir():
            assert lasting.get(file) == file.read_bytes(), f"{file.name} is not fsynced as it is"
        return real_rename(path, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", rename)
    checkpoint.save(tmp_path / "checkpoints", 7, FILES, {})
    assert acts[0] == f"fsync {tmp_path.name}", "the folder of all checkpoints was made just now"
    assert acts[-2:] == ["rename to 000000000007", "fsync checkpoints"]


def test_if_all_are_damaged_nothing_starts_afresh_and_nothing_deleted(tmp_path: Path) -> None:
    saved(tmp_path, 100)
    (checkpoint.path_of(tmp_path, 100) / "state.json").write_text("{}")
    with pytest.raises(
        TrainingError,
        match="all 1 checkpoints in .* are damaged; nothing was deleted: .* --run.fresh true",
    ):
        checkpoint.newest(tmp_path, lambda line: None)
    assert checkpoint.path_of(tmp_path, 100).exists()


def test_a_folder_without_checkpoints_has_no_newest(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path / "none", print) is None


def test_pruning_keeps_the_newest_few_and_the_best(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, 3, 4, 5, figures={1: 0.9, 2: 0.1, 3: 0.5, 4: 0.4, 5: 0.3})
    checkpoint.prune(tmp_path, 2, "val/mse", 5)
    assert [int(path.name) for path in checkpoint.complete(tmp_path)] == [2, 4, 5]
    checkpoint.prune(tmp_path, 1, "val/none", 5)
    assert [int(path.name) for path in checkpoint.complete(tmp_path)] == [5]


def test_damaged_later_ones_never_drive_out_the_last_good_one(tmp_path: Path) -> None:
    """After 200 and 300 were passed over, the run goes on from 100: what it saves counts, what is
    damaged does not.
    """
    saved(tmp_path, 100, 200, 300)
    for images in (200, 300):
        (checkpoint.path_of(tmp_path, images) / "state.json").write_text("{")
    saved(tmp_path, 150)
    checkpoint.prune(tmp_path, 2, "val/mse", 150)
    assert [int(path.name) for path in checkpoint.complete(tmp_path)] == [100, 150, 200, 300]
    assert checkpoint.newest(tmp_path, lambda line: None) == checkpoint.path_of(tmp_path, 150)


def test_where_more_is_better_the_greatest_is_the_best_and_is_kept(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, 3, 4, figures={1: 0.1, 2: 0.9, 3: 0.5, 4: 0.4})
    found = checkpoint.complete(tmp_path)
    assert checkpoint.best_of(found, "val/mse", -1) == found[1]
    assert checkpoint.best_of(found, "val/mse") == found[0]
    checkpoint.prune(tmp_path, 1, "val/mse", 4, -1)
    assert [int(path.name) for path in checkpoint.complete(tmp_path)] == [2, 4]


def test_a_disk_without_room_is_refused_before_a_file_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, 100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**17))
    with pytest.raises(OSError, match=r"0\.1 MiB are free, 0\.3 MiB are needed") as refused:
        checkpoint.save(tmp_path, 200, FILES, {})
    assert refused.value.errno == errno.ENOSPC
    assert [path.name for path in tmp_path.iterdir()] == [f"{100:012d}"]


def test_no_full_disk_costs_a_complete_checkpoint() -> None:
    """The same save on disks that are full 4 KiB later each time: it goes through, or nothing of it
    is left.
    """
    ends = saves.full_disks(ask_first=False)
    assert ends.pop("") > 0
    assert ends
    assert all("No space left" in why or "File too large" in why for why in ends)


def test_a_kill_anywhere_in_saving_leaves_a_complete_checkpoint() -> None:
    """SIGKILL around a call into the system of save and prune; the bench has all of them."""
    ((died, wrong),) = gloo.run(1, saves.kills, 30)
    assert died == 30
    assert not wrong


def test_a_damaged_one_of_the_same_images_gives_way(tmp_path: Path) -> None:
    saved(tmp_path, 7)
    (checkpoint.path_of(tmp_path, 7) / "networks.safetensors").write_bytes(b"")
    saved(tmp_path, 7)
    checkpoint.verify(checkpoint.path_of(tmp_path, 7))
