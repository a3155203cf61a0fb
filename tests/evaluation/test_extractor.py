"""A classifier from a file: the same features, and a refusal of whatever is none."""

import hashlib
from pathlib import Path

import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet
from safetensors.torch import save_file

from udl_dist.errors import DataError, TrainingError, UsageError
from udl_dist.evaluation import extractor, settings
from udl_dist.evaluation.extractor import Classifier
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
