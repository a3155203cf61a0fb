"""Extractors from files, our own and those of others: the same features, named by their hash; no
pickle is read, and whatever is none is refused.
"""

import hashlib
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet
from safetensors.torch import save_file
from torch import Tensor, nn

from udl_dist.errors import DataError, TrainingError, UsageError
from udl_dist.evaluation import extractor, settings
from udl_dist.evaluation.extractor import Classifier
from udl_dist.evaluation.metric_group import Extractor
from udl_dist.evaluation.representation import purity
from udl_dist.methods.method import Shape
from udl_dist.methods.networks import feature_files

CPU = torch.device("cpu")
SHAPE = (1, 8, 8)


def test_a_classifier_comes_back_from_its_file(tmp_path: Path) -> None:
    made = Classifier(SHAPE, 3)
    made.scale.fill_(2.0)
    made.save(tmp_path / "made")
    read, images = extractor.find(str(tmp_path / "made"), SHAPE, CPU), torch.rand(5, *SHAPE)
    assert len(read.hash) == 64 and read.logits
    with torch.no_grad():
        torch.testing.assert_close(read.features(images), made.features(images))
        logits = made(images)
        torch.testing.assert_close(read.logits(read.features(images)), logits, atol=1e-5, rtol=0)
    with pytest.raises(UsageError, match=r"takes images of \[1, 8, 8\], these are \[3, 8, 8\]"):
        extractor.find(str(tmp_path / "made"), (3, 8, 8), CPU)


def test_a_file_of_the_release_before_keeps_its_features(tmp_path: Path) -> None:
    """Its network had a ReLU, and evaluations name it by its hash."""
    made, images = Classifier(SHAPE, 3), torch.rand(5, *SHAPE)
    facts = {"kind": "udl-dist extractor 2", "shape": "[1, 8, 8]", "classes": "3"}
    save_file(made.state_dict(), tmp_path / "before", facts)
    features = extractor.find(str(tmp_path / "before"), SHAPE, CPU).features(images)
    with torch.no_grad():
        bare = made.eval().body(images)
    assert (bare < 0).any()
    torch.testing.assert_close(features, bare.relu())


def test_what_is_no_extractor_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"\x80\x04 no tensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "other")
    for name, why in (
        ("text", "is not a valid extractor"),
        ("nowhere", "is not a valid extractor"),
        ("other", "was not written by udl fit-extractor"),
    ):
        with pytest.raises(DataError, match=why):
            extractor.find(str(tmp_path / name), SHAPE, CPU)
    facts = {"kind": extractor.KIND, "shape": "[1, 8, 8]", "classes": "3"}
    save_file({"a": torch.zeros(1)}, tmp_path / "changed", facts)
    with pytest.raises(DataError, match="is damaged"):
        extractor.find(str(tmp_path / "changed"), SHAPE, CPU)


def test_features_that_are_not_finite_are_refused() -> None:
    made = Classifier(SHAPE, 3)
    made.scale.fill_(0.0)
    with pytest.raises(TrainingError, match="not finite"):
        made.features(torch.rand(2, *SHAPE))


def test_purity_is_the_share_of_the_commonest_class_of_each_cluster() -> None:
    labels, given = (
        torch.tensor([0, 0, 1, 1, 2, 2]).numpy(),
        torch.tensor([5, 5, 5, 1, 1, 1]).numpy(),
    )
    assert purity(labels, given) == pytest.approx(4 / 6)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 40, 36)])
@torch.no_grad()
def test_efficientnet_gives_the_pooled_features_of_its_package(shape: Shape) -> None:
    oracle = EfficientNet.from_name("efficientnet-lite0", image_size=list(shape[1:]))
    file = feature_files.read(settings.LITE0)
    weights = file.network.state_dict().values()
    oracle.load_state_dict(dict(zip(oracle.state_dict(), weights, strict=False)), strict=False)
    found, images = extractor.find(settings.LITE0, shape, CPU), torch.rand(5, *shape) * 2 - 1
    expected = oracle.eval().extract_features(images.expand(-1, 3, -1, -1)).mean((2, 3))
    torch.testing.assert_close(found.features(images), expected, atol=1e-5, rtol=1e-5)
    assert expected.shape == (5, 1280)
    assert (found.name, found.hash) == ("efficientnet-lite0, mean of the last map", file.sha256)


def test_weights_of_a_known_network_are_an_extractor_by_their_hash(tmp_path: Path) -> None:
    tensors = feature_files.read(settings.LITE0).network.state_dict()
    names = {name: "_" + name.replace(".", "._", name.count(".") - 1) for name in tensors}
    names |= {name: one.replace("._", ".", 1) for name, one in names.items() if "blocks" in name}
    save_file({names[name]: value for name, value in tensors.items()}, tmp_path / "mine")
    found = extractor.find(str(tmp_path / "mine"), (1, 28, 28), CPU)
    assert found.name == "mine, mean of the last map"
    assert found.hash == hashlib.sha256((tmp_path / "mine").read_bytes()).hexdigest()


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
