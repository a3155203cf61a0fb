"""What a method costs, counted on the meta device, is what torch does with real numbers."""

import itertools
import subprocess
import sys
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.methods.cases import CASES, SHAPE, batch, made, maker
from udl_dist.errors import UsageError
from udl_dist.methods import names
from udl_dist.methods.method import Batch, Loss, Method, Phase
from udl_dist.methods.networks import NetworkSettings, decoder, encoder, sizes
from udl_dist.methods.networks.layers import NormKind

ROWS = 64


class Fixed(Method):
    """A dense network of 64-5-64 whose middle is a ReLU; `used` is what its loss works on."""

    def __init__(self, settings: Any, shape: Any, classes: tuple[str, ...] = ()) -> None:
        super().__init__(settings, shape, classes)
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.ReLU())
        self.decoder = nn.Linear(5, 64)
        self.unused = nn.Linear(3, 1, bias=False)

    def phases(self) -> tuple[Phase, ...]:
        return (Phase(self.settings, self.loss),)

    def loss(self, batch: Batch) -> Loss:
        return Loss(self.decoder(self.encoder(batch.images)).square().sum(1).mean())


def fixed(*trains: str) -> Method:
    return sizes.MethodMaker(Fixed, trains, SHAPE).on_meta()


def test_a_small_network_is_counted_as_by_hand() -> None:
    method = fixed("encoder", "decoder")
    assert sum(weight.numel() for weight in method.parameters()) == 64 * 5 + 5 + 5 * 64 + 64 + 3
    forward = 2 * (64 * 5 + 5 * 64)
    # Backward: of each layer the gradient of the weights, and of all but the first that of inputs.
    backward = 2 * (64 * 5 + 5 * 64) + 2 * 5 * 64
    found = sizes.cost(method)
    assert found.flops == forward + backward
    # The image, the ReLU's output and the decoder's, four bytes each; square keeps its input.
    assert found.activation_bytes == 4 * (64 + 5 + 64)


class Choosing(Fixed):
    """Its loss keeps some rows by a condition, which needs their numbers."""

    def loss(self, batch: Batch) -> Loss:
        squares = self.decoder(self.encoder(batch.images)).square().sum(1)
        return Loss(squares[squares > 0].mean())


class Constant(Fixed):
    """Its loss depends on no weight."""

    def loss(self, batch: Batch) -> Loss:
        return Loss(batch.images.mean())


def test_what_a_loss_costs_that_needs_numbers_is_not_known() -> None:
    trains = ("encoder", "decoder")
    assert sizes.cost(sizes.MethodMaker(Choosing, trains, SHAPE).on_meta()) == sizes.Cost(0, 0)
    assert sizes.cost(fixed(*trains)).flops > 0


def test_a_loss_that_depends_on_no_weight_is_refused() -> None:
    with pytest.raises(UsageError, match=r"trains encoder has a loss that encoder\.1\.weight"):
        sizes.cost(sizes.MethodMaker(Constant, ("encoder",), SHAPE).on_meta())


def test_a_phase_that_trains_one_network_stores_and_computes_less() -> None:
    whole, decoder_alone = sizes.cost(fixed("encoder", "decoder")), sizes.cost(fixed("decoder"))
    assert decoder_alone.flops == whole.flops - 2 * (64 * 5 + 5 * 64)
    assert decoder_alone.activation_bytes == 4 * (5 + 64)


def test_a_phase_whose_loss_misses_a_weight_is_refused_by_name() -> None:
    said = "trains decoder, unused has a loss that unused.weight has no part in"
    with pytest.raises(UsageError, match=said):
        sizes.cost(fixed("decoder", "unused"))


def counted(method: Method, data: Batch) -> list[tuple[int, int]]:
    """FLOPs and bytes that autograd stores for its backward, of each phase with real numbers."""
    found = []
    own = {weight.untyped_storage().data_ptr() for weight in method.parameters()}
    for phase in method.phases():
        for name, network in method.networks.items():
            network.requires_grad_(name in phase.trains)
        stored: dict[int, Tensor] = {}  # kept alive: else their places would be used again

        def keep(value: Tensor, stored: dict[int, Tensor] = stored) -> Tensor:
            stored[value.untyped_storage().data_ptr()] = value
            return value

        with FlopCounterMode(display=False) as counter:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
                loss = phase.loss(data)
            loss.value.backward()  # type: ignore[no-untyped-call]
        kept = sum(value.untyped_storage().nbytes() for p, value in stored.items() if p not in own)
        found.append((counter.get_total_flops(), kept))
    return found


# Those that are not a method with its own defaults are slow: some minutes together.
MEASURED = [
    case if case in names() else pytest.param(case, marks=pytest.mark.long) for case in CASES
]


@pytest.mark.parametrize("case", MEASURED)
def test_flops_and_stored_bytes_are_those_of_a_real_step(case: str) -> None:
    found = sizes.cost(maker(*CASES[case]).on_meta())
    for rows, too_much in ((sizes.ROWS, 1.01), (ROWS, 1.6)):
        if rows != sizes.ROWS and "vamp" in case:
            # Pseudo-inputs are encoded once a step, which the plan shares among its two images.
            continue
        # The plan counts the matrix of an attention, which a fused kernel does not store.
        with sdpa_kernel(SDPBackend.MATH):
            phases = counted(made(*CASES[case]), batch(rows, seen=sizes.LATE))
        # With R1 a real backward goes on to the images, which have a gradient but need none.
        assert found.flops == pytest.approx(sum(flops for flops, _ in phases) / rows, rel=0.05)
        most = max(kept for _, kept in phases) / rows
        # Statistics of batch normalisation are shared by more images in a real batch.
        assert most <= 1.01 * found.activation_bytes <= too_much * 1.01 * most


@pytest.mark.parametrize("norm", ["none", "group", "batch"])
@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_batch_normalisation_is_found_wherever_it_is(
    kind: Literal["dense", "conv"], norm: NormKind
) -> None:
    settings = NetworkSettings(kind, (8, 8), 1, norm)
    for network in (encoder(settings, SHAPE, (3,)), decoder(settings, (3,), SHAPE)):
        assert sizes.mixes_images(network) is (norm == "batch")
    assert sizes.mixes_images(nn.Sequential(nn.Sequential(nn.SyncBatchNorm(3))))
    assert not sizes.mixes_images(nn.InstanceNorm2d(3))


def in_words(*widths: int, kind: Literal["dense", "conv"] = "conv", depth: int = 0) -> str:
    shape, settings = (1, 28, 28), NetworkSettings(kind, widths, depth)
    return ", ".join(
        sizes.in_words(network)
        for network in (encoder(settings, shape, (4,)), decoder(settings, (4,), shape))
    )


@pytest.mark.parametrize(
    ("say", "words"),
    [
        (lambda: in_words(32, 64), "conv 32-64-4, conv 3136-32-1"),
        (lambda: in_words(16, kind="dense"), "dense 16-4, dense 16-784"),
        (lambda: in_words(16, 8, kind="dense", depth=1), "dense 16-16-8-8-4, dense 8-8-16-16-784"),
        (
            lambda: in_words(8, 16, depth=4),
            "conv, 19 layers of 4 to 16, conv, 19 layers of 1 to 784",
        ),
        (lambda: sizes.in_words(nn.Sequential()), "bias"),
    ],
)
def test_a_network_is_said_by_its_kind_and_widths(say: Callable[[], str], words: str) -> None:
    assert say() == words


def test_on_meta_nothing_is_allocated() -> None:
    network = {"network.kind": "dense", "network.widths": [2**20, 2**20]}
    method = maker("ae", network).on_meta()  # 4 TiB
    assert all(weight.is_meta for weight in method.parameters())
    assert sizes.cost(method).flops > 2**42


COUNTED = """
import sys
from tests.methods.cases import maker
from udl_dist.methods import names
from udl_dist.methods.networks import sizes

makers = [maker(name) for name in ("vae", "gan")]
found = [sizes.cost_of(make) for make in makers]
assert "torch._dynamo" not in sys.modules
"""
COMPILED = """
import torch
with sizes._without_compiler():  # what needs the compiler after all imports it
    double = torch.compile(lambda x: 2 * x, backend="eager", fullgraph=True)
    assert double(torch.ones(3)).tolist() == [2, 2, 2]
assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
assert [sizes.cost(make.on_meta()) for make in makers] == found
"""


@pytest.mark.parametrize(
    "code", [COUNTED, pytest.param(COUNTED + COMPILED, marks=pytest.mark.long)]
)
def test_counting_imports_no_compiler_and_leaves_it_whole(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_cost_of_equal_settings_is_counted_once() -> None:
    sizes.cost_of.cache_clear()
    assert sizes.cost_of(maker("ae")) == sizes.cost_of(maker("ae"))
    assert sizes.cost_of(maker("ae", {"latent_dim": 2})) != sizes.cost_of(maker("ae"))
    assert sizes.cost_of.cache_info().misses == 2


def test_counting_changes_no_random_state() -> None:
    before = torch.get_rng_state()
    for case in itertools.islice(CASES, 3):
        sizes.cost(maker(*CASES[case]).on_meta())
    assert torch.equal(torch.get_rng_state(), before)
