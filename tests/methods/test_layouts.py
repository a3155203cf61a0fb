"""What a checkpoint holds, by name and shape, stays the same from release to release."""

import hashlib
from typing import Any

import pytest

from udl_dist import methods
from udl_dist.core.config_schema import from_dict, nest
from udl_dist.methods.networks.sizes import MethodMaker

COLOUR, GRAY = (3, 64, 64), (1, 28, 28)
# Of the default settings but for those given. A digest that changes means that older
# checkpoints no longer load, unless it was a default alone that changed: a run folder has its own
# settings.
LAYOUTS: list[tuple[str, tuple[int, int, int], dict[str, Any], str]] = [
    ("aae", GRAY, {}, "fdc4656deaa8"),
    ("ae", GRAY, {}, "16a5572dd482"),
    ("ae", COLOUR, {"network.kind": "dense"}, "d4aae972b6b0"),
    ("ae", COLOUR, {"network.kind": "conv", "network.norm": "batch"}, "fe3dcbc50082"),
    ("ae", COLOUR, {"network.kind": "resnet", "network.attention": [16]}, "e6db9ca223b5"),
    ("vae", COLOUR, {}, "e62ab50dcd91"),
    ("vae", GRAY, {"prior": "vamp", "variance": "learned"}, "134e17de451e"),
    ("ladder", COLOUR, {}, "6679d31f85f5"),
    ("kl", COLOUR, {}, "1077dd884582"),
    ("vq", COLOUR, {}, "e7f188a58c39"),
    ("vq", COLOUR, {"quantizer.kind": "fsq"}, "f6bccabe8075"),
    ("gan", COLOUR, {}, "f62fa96e7e82"),
    ("gan", COLOUR, {"generator": "r3", "discriminator": "r3"}, "9c72413e796a"),
    ("gan", GRAY, {"generator": "r3", "discriminator": "r3"}, "b95ebbfaa1f0"),
    ("gan", COLOUR, {"generator": "dcgan", "discriminator": "dcgan"}, "0137cbd6110e"),
    ("gan", GRAY, {"generator": "dcgan", "discriminator": "dcgan"}, "ad27c77420f9"),
    ("gan", COLOUR, {"generator": "article", "discriminator": "article"}, "1e58c746bca2"),
    ("gan", GRAY, {"generator": "article", "discriminator": "article"}, "0a7038cb40f1"),
    ("gan", COLOUR, {"generator": "conv", "discriminator": "conv"}, "c601a499ff0a"),
]


@pytest.mark.parametrize(("name", "shape", "settings", "digest"), LAYOUTS)
def test_a_checkpoint_holds_what_it_always_held(
    name: str, shape: tuple[int, int, int], settings: dict[str, Any], digest: str
) -> None:
    kind = methods.find(name)
    made = MethodMaker(kind, from_dict(kind.Settings, nest(settings), "method."), shape).on_meta()
    tensors = sorted(made.saved_tensors().items())
    lines = "\n".join(f"{key} {list(tensor.shape)}" for key, tensor in tensors)
    assert hashlib.sha256(lines.encode()).hexdigest()[:12] == digest, lines
