"""Extractors from elsewhere: used if trusted and named by their hash; no pickle is read."""

import hashlib
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from udl_dist.errors import DataError, TrainingError, UsageError
from udl_dist.evaluation import extractor
from udl_dist.evaluation.metric_group import Extractor

CPU, SHAPE = torch.device("cpu"), (1, 8, 8)


class Wide(nn.Module):
    """As many numbers for each image as there are images."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, : images.shape[0]]


class Infinite(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) / (images.flatten(1) * 0)


class Summed(nn.Module):
    """One row for all images together."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1).sum(0, keepdim=True)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2)).eval()


def script(module: nn.Module, path: Path) -> Path:
    torch.jit.save(torch.jit.script(module), str(path))
    return path


def program(module: nn.Module, path: Path, example: bool = False) -> Path:
    made = torch.export.export(
        module, (torch.zeros(4, *SHAPE),), dynamic_shapes=({0: torch.export.Dim("images")},)
    )
    if not example:
        made.example_inputs = None
    torch.export.save(made, str(path))
    return path


def find(path: Path, trusted: bool = True) -> Extractor:
    return extractor.find(str(path), SHAPE, CPU, trusted)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("save", "name"), [(script, "mine.pt"), (program, "mine.pt2")])
def test_an_external_network_gives_its_own_numbers(
    tmp_path: Path, save: Callable[[nn.Module, Path], Path], name: str
) -> None:
    module, path, images = network(), tmp_path / name, torch.rand(5, *SHAPE)
    save(module, path)
    found = find(path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert (found.name, found.hash, found.logits) == (name, sha256, None)
    for count in (1, 5):
        with torch.no_grad():
            expected = module(images[:count]).flatten(1)
            torch.testing.assert_close(found.features(images[:count]), expected, atol=1e-6, rtol=0)
    with pytest.raises(UsageError, match="say --trust-extractor true"):
        find(path, trusted=False)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("module", "kind", "why"),
    [
        (Wide(), DataError, "gave 2 numbers for an image and now 3"),
        (Infinite(), TrainingError, "not finite"),
        (Summed(), DataError, r"gives a tensor of \[1, 64\] for 2 images"),
        (nn.Conv2d(3, 1, 3), DataError, r"cannot take \[2, 1, 8, 8\]"),
    ],
)
def test_what_an_extractor_must_not_give_is_refused_in_one_line(
    tmp_path: Path, module: nn.Module, kind: type[Exception], why: str
) -> None:
    path = script(module, tmp_path / "wrong.pt")
    with pytest.raises(kind, match=why) as refusal:
        find(path)
    assert "\n" not in str(refusal.value) and str(path) in str(refusal.value)


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


def changed(path: Path, part: str, data: bytes) -> Path:
    """A copy of an archive with one member of other content."""
    copy = path.with_name(f"changed{path.suffix}")
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(copy, "w") as other:
        names = archive.namelist()
        root = names[0].partition("/")[0]
        for name in {*names, f"{root}/{part}"}:
            other.writestr(name, data if name == f"{root}/{part}" else archive.read(name))
    return copy


@pytest.mark.filterwarnings("ignore")
def test_no_pickle_is_read_even_of_a_trusted_file(tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    trap = pickle.dumps(Trap(sprung))
    good = program(network(), tmp_path / "good.pt2")
    table = b'{"config": {"a": {"path_name": "tensor_0", "use_pickle": true}}}'
    for part, data in (
        ("data/sample_inputs/model.pt", trap),
        ("data/weights/model.pt", trap),
        ("data/constants/model.pt", trap),
        ("data/aotinductor/model/a.so", b"code"),
        ("data/constants/model_constants_config.json", table),
        ("data/weights/model_weights_config.json", b"no table"),
    ):
        with pytest.raises(DataError, match="none is read|cannot be read") as refusal:
            find(changed(good, part, data))
        assert "\n" not in str(refusal.value) and not sprung.exists(), part
    assert find(changed(good, "data/sample_inputs/model.pt", b"")).name == "changed.pt2"
    with pytest.raises(DataError, match=r"set program\.example_inputs = None"):
        find(program(network(), tmp_path / "example.pt2", example=True))


def test_pickles_of_torch_and_zips_of_something_else_are_refused(tmp_path: Path) -> None:
    sprung, path = tmp_path / "sprung", tmp_path / "weights.pt"
    torch.save({"trap": Trap(sprung)}, path)
    with pytest.raises(
        DataError, match=r"holds no network that can be read \(a pickle of torch.save is not\)"
    ):
        find(path)
    path.write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(DataError, match="is not a valid extractor"):
        find(path)
    assert not sprung.exists()
