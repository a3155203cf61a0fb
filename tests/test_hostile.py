"""Hostile files at every input of the product: nothing in them runs, each is refused in one line or
left alone.

What would run makes a file, the canary. The inputs are those of the `udl` command.
"""

import io
import json
import os
import pickle
import pickletools
import re
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.search.asked import wanted
from tests.trained import images
from udl_dist import cli
from udl_dist.data.shards import index
from udl_dist.inference import layout

REFUSAL = re.compile("udl: |  shard .* at byte |  '.*' ")  # or what udl check lists
Connection = Callable[[Path, bytes, dict[str, Path]], list[str]]


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.canary),)


class Executed(Bomb):
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (f"import os; os.mkdir({str(self.canary)!r})",)


def _torch_file(canary: Path) -> bytes:
    """A zip with a pickle, as torch.save writes it."""
    file = io.BytesIO()
    torch.save({"weights": torch.zeros(2), "bomb": Bomb(canary)}, file)
    return file.getvalue()


def _object_array(canary: Path) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([Bomb(canary)], object), allow_pickle=True)
    return file.getvalue()


def _object_arrays(canary: Path) -> bytes:
    file = io.BytesIO()
    np.savez(
        file, images=np.array([Bomb(canary)] * 8, object), labels=np.arange(8), allow_pickle=True
    )
    return file.getvalue()


def _zip(canary: Path) -> bytes:
    """A zip whose names climb out of the folder that it is unpacked into."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(f"../../../../..{canary}", "out")
        archive.writestr("data.pkl", pickle.dumps(Bomb(canary)))
    return file.getvalue()


def _polyglot(canary: Path) -> bytes:
    """A pickle first, a whole image behind it."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(images(1)[0]).save(file, "PNG")
    return pickle.dumps(Bomb(canary)) + file.getvalue()


PAYLOADS: dict[str, Callable[[Path], bytes]] = {
    **{
        f"pickle, protocol {number}": lambda canary, number=number: pickle.dumps(
            Bomb(canary), number
        )  # type: ignore[misc]
        for number in range(6)
    },
    "pickle that executes": lambda canary: pickle.dumps(Executed(canary)),
    "pickle that is optimised": lambda canary: pickletools.optimize(pickle.dumps(Bomb(canary), 2)),
    "what torch.save writes": _torch_file,
    "zip that climbs out": _zip,
    "array of objects": _object_array,
    "arrays of objects": _object_arrays,
    "script": lambda canary: f"#!/bin/sh\nmkdir {canary}\n".encode(),
    "python": lambda canary: f"import os\nos.mkdir({str(canary)!r})\n".encode(),
    "yaml object": lambda canary: f"!!python/object/apply:os.mkdir ['{canary}']\n".encode(),
    "toml with code": lambda canary: (
        f"[method]\nname = \"__import__('os').mkdir('{canary}')\"\n".encode()
    ),
    "pickle before an image": _polyglot,
}


def _shard(folder: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(folder / "000000.tar", "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return folder


def in_a_shard(suffix: str) -> Connection:
    return lambda folder, payload, _: [
        "check",
        str(_shard(folder, {f"a{suffix}": payload, "a.cls": b"0"})),
        "--decode",
    ]


def as_a_file(name: str, *verb: str) -> Connection:
    def connection(folder: Path, payload: bytes, _: dict[str, Path]) -> list[str]:
        (folder / name).write_bytes(payload)
        return [
            str(folder / name) if word == "HERE" else str(folder / "out") if word == "OUT" else word
            for word in verb
        ]

    return connection


def as_an_index(folder: Path, payload: bytes, made: dict[str, Path]) -> list[str]:
    shutil.copytree(made["shards"], folder / "shards")
    (folder / "shards" / index.NAME).write_bytes(payload)
    return ["train", str(made["job"]), "--data.source", str(folder / "shards"), "--dry-run"]


def in_a_run(pattern: str, *verb: str, believed: bool = False) -> Connection:
    """All files of a run that the pattern finds take the payload; `believed`: the manifest says so
    too.
    """

    def connection(folder: Path, payload: bytes, made: dict[str, Path]) -> list[str]:
        run = folder / "run"
        shutil.copytree(made["run"], run)
        found = list(run.glob(pattern)) or [run / pattern]
        for path in found:
            path.write_bytes(payload)
            if believed and (listing := path.parent / "manifest.json").exists():
                facts = json.loads(listing.read_text())
                facts["files"][path.name] = layout.described(path)
                listing.write_text(json.dumps(facts))
        return [
            str(run) if word == "HERE" else str(folder / "out.png") if word == "OUT" else word
            for word in verb
        ]

    return connection


def in_a_model(name: str, believed: bool = False) -> Connection:
    def connection(folder: Path, payload: bytes, made: dict[str, Path]) -> list[str]:
        shutil.copytree(made["model"], folder / "model")
        (folder / "model" / name).write_bytes(payload)
        if believed:
            config = json.loads((folder / "model" / layout.CONFIG).read_text())
            config["files"][name] = layout.described(folder / "model" / name)
            (folder / "model" / layout.CONFIG).write_text(json.dumps(config))
        return ["sample", str(folder / "model"), "--out", str(folder / "out.png")]

    return connection


def as_an_extractor(folder: Path, payload: bytes, made: dict[str, Path]) -> list[str]:
    (folder / "x.safetensors").write_bytes(payload)
    return [
        "evaluate",
        str(made["vae"]),
        "--extractor",
        str(folder / "x.safetensors"),
        "--families",
        "distribution",
        "--out",
        str(folder / "figures.json"),
    ]


def as_a_journal(folder: Path, payload: bytes, made: dict[str, Path]) -> list[str]:
    shutil.copytree(made["search"], folder / "search")
    (folder / "search" / "trials.jsonl").write_bytes(payload + b"\n")
    return ["search", "--status", str(folder / "search")]


SAMPLE = ("sample", "HERE", "--out", "OUT")
DOORS: dict[str, Connection] = {
    **{
        f"shard, {suffix}": in_a_shard(suffix)
        for suffix in (".png", ".npy", ".pkl", ".pyd", ".pth", ".json", ".cls")
    },
    "shard itself": as_a_file("000000.tar", "check", "HERE", "--decode"),
    "index": as_an_index,
    "array": as_a_file("a.npy", "pack", "HERE", "OUT"),
    "arrays": as_a_file("a.npz", "pack", "HERE", "OUT"),
    "job": as_a_file("job.toml", "train", "HERE", "--dry-run"),
    "weights of all checkpoints": in_a_run("checkpoints/*/*.safetensors", *SAMPLE),
    "weights, with their sha256": in_a_run(
        "checkpoints/*/networks.safetensors", *SAMPLE, believed=True
    ),
    "manifests of all checkpoints": in_a_run("checkpoints/*/manifest.json", *SAMPLE),
    "states of all checkpoints": in_a_run("checkpoints/*/state.json", *SAMPLE),
    "experiment of a run": in_a_run("experiment.toml", *SAMPLE),
    "prior of a run": in_a_run("prior.safetensors", *SAMPLE, "--prior", "mixture"),
    "weights of a model": in_a_model("model.safetensors"),
    "weights of a model, with their sha256": in_a_model("model.safetensors", believed=True),
    "config of a model": in_a_model("config.json"),
    "more in a model": in_a_model("extra.pkl"),
    "extractor": as_an_extractor,
    "journal of a search": as_a_journal,
}


@pytest.fixture(scope="module")
def made(trained: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each method, a model that is exported, a search that has begun."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.raises(SystemExit) as ended:
        cli.main(["export", str(trained["vae"]), str(folder / "model")])
    assert ended.value.code in (0, None)
    run, shards = folder / "run", trained["vae"].parent / "data" / "packed" / "train"
    shutil.copytree(trained["vae"], run)
    with pytest.raises(SystemExit):
        cli.main(["fit-prior", str(run), "--components", "2"])
    search = wanted(shards, folder / "search")
    (folder / "search").mkdir()
    (folder / "search" / "search.toml").write_text(search.to_toml())
    job = trained["vae"] / "experiment.toml"
    return {
        **trained,
        "run": run,
        "model": folder / "model",
        "search": folder / "search",
        "shards": shards,
        "job": job,
    }


@pytest.mark.parametrize("connection", DOORS)
def test_nothing_runs_and_a_refusal_is_one_line(
    connection: str, made: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, (name, payload) in enumerate(PAYLOADS.items()):
        folder, canary = tmp_path / str(number), tmp_path / "canary"
        folder.mkdir()
        command = DOORS[connection](folder, payload(canary), made)
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main(command)
        said = capsys.readouterr()
        assert not canary.exists(), f"{name} ran"
        assert ended.value.code in (2, 3, 4), name
        refusals = [line for line in (said.err + said.out).splitlines() if REFUSAL.match(line)]
        assert len(refusals) == 1, said.err + said.out
        assert "Traceback" not in said.err + said.out
