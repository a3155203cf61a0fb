"""Latents of a whole source in parts: every image once, with its key; what is there is not made
again.
"""

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch

import udl_dist
from tests.trained import run
from tests.training.learn import packed
from udl_dist.data.shards.index import Index
from udl_dist.errors import ClusterError, DataError, UsageError
from udl_dist.evaluation.settings import EmbedSettings
from udl_dist.inference import embedding
from udl_dist.inference.model import Model
from udl_dist.inference.sources import open_stream


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(tmp_path_factory.mktemp("source"), 100) / "train"


@pytest.fixture(scope="module")
def model(trained: dict[str, Path]) -> Model:
    return udl_dist.load(trained["vae"])


def embed(model: Model, source: Path, dest: Path, **asked: Any) -> dict[str, Any]:
    return embedding.embed(
        model,
        str(source),
        dest,
        EmbedSettings(**{"part_images": 30, **asked}),
        lambda done, total: None,
    ).as_dict()


def table(folder: Path) -> dict[str, Any]:
    """All parts of a Parquet embedding, in order."""
    files = sorted(folder.glob("*.parquet"))
    return pyarrow.concat_tables([pyarrow.parquet.read_table(file) for file in files]).to_pydict()  # type: ignore[no-any-return]


def test_every_image_has_its_latent_under_its_key(
    model: Model, source: Path, tmp_path: Path
) -> None:
    done = embed(model, source, tmp_path / "out")
    index, found = Index.open(source), table(tmp_path / "out")
    assert (done["records"], done["parts"]) == (index.records, 3)
    assert found["key"] == [index.key(number) for number in range(index.records)]
    assert set(found["label"]) == {-1}
    images = np.concatenate([records.images for records in open_stream(model, str(source)).once(7)])
    torch.testing.assert_close(
        torch.tensor(found["latent"]), model.encode(images), atol=1e-5, rtol=1e-5
    )


def test_codes_are_written_instead_and_decode_to_the_reconstructions(
    source: Path, tmp_path: Path
) -> None:
    model = udl_dist.load(run("vq", source.parent, tmp_path / "run", train__total_images="24"))
    for kind in ("parquet", "npy"):
        done = embed(model, source, tmp_path / kind, format=kind, codes=True)
        assert done["records"] == Index.open(source).records
    files = sorted((tmp_path / "npy").glob("codes-*"))
    codes = np.concatenate([np.load(file) for file in files])
    assert codes.dtype == np.int64
    assert codes.shape[1:] == (4, 4)
    assert 0 <= codes.min() <= codes.max() < model.method.code_count == 16
    assert (np.array(table(tmp_path / "parquet")["code"]) == codes.reshape(len(codes), -1)).all()
    assert json.loads((tmp_path / "npy" / "embedding.json").read_text())["codes"] == [4, 4, 16]
    images = np.concatenate([part.images for part in open_stream(model, str(source)).once(7)])
    torch.testing.assert_close(model.decode_indices(codes), model.reconstruct(images))
    with pytest.raises(UsageError, match="holds another embedding"):
        embed(model, source, tmp_path / "npy", format="npy")


def test_codes_of_a_model_without_any_are_refused(
    model: Model, source: Path, tmp_path: Path
) -> None:
    no_codes = "a model of method vae cannot give codes, it can encode"
    with pytest.raises(UsageError, match=f"{no_codes}.*; leave out --codes"):
        embed(model, source, tmp_path / "out", codes=True)
    with pytest.raises(UsageError, match=no_codes):
        model.indices(torch.zeros(1, *model.shape))
    with pytest.raises(UsageError, match=no_codes):
        model.decode_indices(torch.zeros(1, 2, 2, dtype=torch.int64))


def test_npy_holds_the_same_as_parquet(model: Model, source: Path, tmp_path: Path) -> None:
    embed(model, source, tmp_path / "parquet")
    embed(model, source, tmp_path / "npy", format="npy")
    found = table(tmp_path / "parquet")
    latents = np.concatenate(
        [np.load(file) for file in sorted((tmp_path / "npy").glob("latents-*"))]
    )
    keys = [
        key
        for file in sorted((tmp_path / "npy").glob("keys-*"))
        for key in file.read_text().splitlines()
    ]
    assert (latents == np.array(found["latent"], np.float32)).all()
    assert keys == found["key"]


def test_parts_that_are_there_are_not_made_again(
    model: Model, source: Path, tmp_path: Path
) -> None:
    embed(model, source, tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    whole = table(tmp_path)
    gone = sorted(tmp_path.glob("*.parquet"))[1]
    gone.unlink()
    done = embed(model, source, tmp_path)
    assert done["parts_there"] == 2
    assert table(tmp_path) == whole
    after = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert {name for name in before if before[name] != after[name]} == {gone.name}


def test_another_model_source_or_layout_does_not_mix_with_what_is_there(
    trained: dict[str, Path], model: Model, source: Path, tmp_path: Path
) -> None:
    embed(model, source, tmp_path / "out")
    for other, asked in (
        (udl_dist.load(trained["ae"]), {}),
        (model, {"format": "npy"}),
        (model, {"part_images": 9}),
    ):
        with pytest.raises(UsageError, match="holds another embedding"):
            embed(other, source, tmp_path / "out", **asked)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    with pytest.raises(UsageError, match="exists and is not an embedding"):
        embed(model, source, tmp_path / "mine")
    (tmp_path / "out" / "embedding.json").write_text("{")
    with pytest.raises(UsageError, match="is damaged"):
        embed(model, source, tmp_path / "out")


def test_a_method_without_an_encoder_embeds_nothing(
    trained: dict[str, Path], source: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="cannot encode, it can decode, sample"):
        embed(udl_dist.load(trained["gan"]), source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("cluster")
@pytest.mark.filterwarnings("default")
def test_two_ray_workers_refuse_what_is_damaged_and_then_make_what_one_process_makes(
    model: Model, source: Path, tmp_path: Path
) -> None:
    embed(model, source, tmp_path / "alone", part_images=20)
    with pytest.raises(ClusterError, match="workers = 9 needs as many CPUs, the cluster has 4"):
        embed(model, source, tmp_path / "many", part_images=2, workers=9)
    tar = next(source.glob("*.tar"))
    content = bytearray(tar.read_bytes())
    whole, content[700] = bytes(content), content[700] ^ 1
    tar.write_bytes(content)
    with pytest.raises(DataError, match="does not match its checksum"):
        embed(model, source, tmp_path / "shared", part_images=20, workers=2)
    tar.write_bytes(whole)  # mended, the same command goes on
    embed(model, source, tmp_path / "shared", part_images=20, workers=2)
    alone, shared = table(tmp_path / "alone"), table(tmp_path / "shared")
    assert alone["key"] == shared["key"]
    torch.testing.assert_close(
        torch.tensor(alone["latent"]), torch.tensor(shared["latent"]), atol=1e-5, rtol=1e-5
    )


@pytest.mark.long
@pytest.mark.usefixtures("cluster")
@pytest.mark.filterwarnings("default")
def test_a_worker_that_is_killed_is_started_again_and_no_image_is_missing(
    model: Model, source: Path, tmp_path: Path
) -> None:
    killed: list[int] = []

    def kill_one(done: int, total: int) -> None:
        workers = [
            int(entry.name)
            for entry in Path("/proc").iterdir()
            if entry.name.isdecimal() and b"ray::PartWorker" in (entry / "cmdline").read_bytes()
        ]
        if not killed and workers:
            os.kill(workers[0], signal.SIGKILL)
            killed.append(workers[0])

    asked = EmbedSettings(part_images=2, workers=2)
    embedding.embed(model, str(source), tmp_path / "out", asked, kill_one)
    assert killed
    assert table(tmp_path / "out")["key"] == [
        Index.open(source).key(number) for number in range(Index.open(source).records)
    ]
