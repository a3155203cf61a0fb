"""python -m tests.bench.gpu: does it train, repeat, resume, feed and export on one GPU? A JSON line
a check, < 8 min.

The most valuable checks come first; after LIMIT seconds (450) those that are left are skipped.
Without a GPU, or with SMALL=1, everything runs small on the CPU: that tries the script, and shows
nothing of a GPU. `expect` stands next to what was seen; nothing is asserted here, so that one
surprise does not hide the next.
"""

import contextlib
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import multiprocessing
from torch.nn import functional

import udl_dist
from udl_dist import experiment as experiments
from udl_dist import methods
from udl_dist.data.loader.opening import open_streams
from udl_dist.data.packing.pack import pack
from udl_dist.data.packing.prepare import prepare
from udl_dist.data.settings import PackSettings
from udl_dist.errors import TrainingError
from udl_dist.experiment import Experiment
from udl_dist.inference.export import ExportSettings, export
from udl_dist.launch.worker import new_train_state, work
from udl_dist.methods.method import Batch
from udl_dist.methods.networks import sizes
from udl_dist.methods.networks.sizes import MethodMaker
from udl_dist.training import arithmetic, checkpoint
from udl_dist.training.batches import batch_memory, decoded_rows
from udl_dist.training.distributed import Ranks
from udl_dist.training.loop import Intervals, Report, TrainingLoop

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda", 0) if GPU else torch.device("cpu")
SMALL = bool(os.environ.get("SMALL")) or not GPU
BEGAN, LIMIT = time.monotonic(), float(os.environ.get("LIMIT", "450"))
STEPS = 8 if SMALL else 20
_FOLDER = tempfile.TemporaryDirectory(prefix="gpu-")  # deleted at the end
FOLDER = Path(_FOLDER.name)
CONV = {"method.network.kind": "conv", "method.latent_dim": "32"}
KINDS: dict[str, dict[str, str]] = {
    "ae": CONV,
    "vae": CONV | {"method.likelihood": "gaussian", "method.variance": "learned"},
    "gan": {  # the article's: batch normalisation, dropout
        "method.latent_dim": "64",
        "method.generator": "article",
        "method.discriminator": "article",
        "method.r1": "0",
    },
    "gan_r1": {
        "method.generator": "conv",
        "method.discriminator": "conv",
        "method.r1": "0.3",
        "method.r1_every": "2",
        "method.network.activation": "leaky_relu",
        "train.average_half_life": "2000",
    },
}


def say(check: str, **found: Any) -> None:
    print(json.dumps({"check": check, "s": round(time.monotonic() - BEGAN), **found}), flush=True)


def check(name: str, run: Callable[..., dict[str, Any]], *arguments: Any) -> None:
    """Run one check and say what it found, also when it fails; after LIMIT seconds say that it was
    skipped.
    """
    if time.monotonic() - BEGAN > LIMIT:
        return say(name, skipped="no time")
    try:
        say(name, **run(*arguments))
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        say(
            name,
            failed=f"{type(error).__name__}: {str(error)[:300]}",
            at=f"{where.filename}:{where.lineno}",
        )


def source(size: int, channels: int = 3, kind: str = "raw") -> Path:
    """Soft random images, packed as raw, npy or jpeg."""
    where = FOLDER / f"{kind}{size}{channels}"
    if not where.exists():
        random = np.random.default_rng(0)
        count = 512 if SMALL or size > 128 else 4096  # of 256 px more would take a GB
        coarse = random.integers(0, 256, (count, size // 4, size // 4, channels), dtype=np.uint8)
        images = coarse.repeat(4, 1).repeat(4, 2)
        np.save(FOLDER / "images.npy", images[..., 0] if channels == 1 else images)
        settings = PackSettings(size=size, channels=channels, format=kind, held_out_fraction=0.1)  # type: ignore[arg-type]
        pack(str(FOLDER / "images.npy"), str(where), settings)
    return where


def asked(
    kind: str,
    size: int = 32,
    channels: int = 3,
    batch: int = 48,
    steps: int = STEPS,
    data: str = "raw",
    **flags: Any,
) -> Experiment:
    dotted = {name.replace("__", "."): str(value) for name, value in flags.items()}
    base = {
        "method.name": kind.split("_")[0],
        "data.source": str(source(size, channels, data)),
        "data.size": str(size),
        "data.channels": str(channels),
        "data.readers": "2",
        "train.batch_size": str(batch),
        "track.mode": "off",
        "train.total_images": str(batch * steps),
        "train.precision": "float32",
        "run.folder": str(FOLDER / "none"),
    }
    return experiments.load(None, base | KINDS[kind] | dotted)


class GpuRun:
    """A training and its reports on a device, with the arithmetic that a worker would set."""

    def __init__(self, experiment: Experiment, device: torch.device = DEVICE) -> None:
        self.experiment, self.ranks = experiment, Ranks(device)
        arithmetic.set_up(device, experiment.run.determinism, experiment.train.precision)
        self.stream, self.held_out = open_streams(
            prepare(experiment.data),
            0,
            batch_memory(device),
            64,
            decoded_rows(experiment.data, self.ranks),
        )
        self.learning = new_train_state(experiment, self.stream, self.ranks)

    def reports(self, start: int = 0, every: int = 1, validate: int = 10**12) -> Iterator[Report]:
        batch = self.experiment.train.batch_size
        intervals = Intervals(every * batch, validate, validate)
        settings, ranks = self.experiment.train, self.ranks
        loop = TrainingLoop(self.learning, self.stream, self.held_out, settings, intervals, ranks)
        return loop.reports(start)

    def losses(self) -> list[float]:
        name = "train/discriminator" if self.experiment.method_name == "gan" else "train/loss"
        return [report.metrics[name] for report in self.reports()]

    def hash(self) -> str:
        digest = hashlib.sha256()
        for file, tensors in sorted(self.learning.tensors().items()):
            for name, value in sorted(tensors.items()):
                digest.update(
                    f"{file}/{name}".encode() + value.detach().cpu().contiguous().numpy().tobytes()
                )
        return digest.hexdigest()[:16]


def apart(one: list[float], other: list[float]) -> float:
    return max(abs(a - b) / max(1, abs(a)) for a, b in zip(one, other, strict=True))


def worker(kind: str) -> dict[str, Any]:
    """What a worker does: checkpoints, curves, pictures, validation; nothing of Ray."""
    folder = FOLDER / f"run_{kind}"
    experiment = asked(kind, steps=STEPS * 3, run__folder=folder)
    folder.mkdir()
    (folder / "experiment.toml").write_text(experiment.to_toml())
    done = work(experiment, prepare(experiment.data), Ranks(DEVICE))
    return {
        "images": done["images"],
        "memory_mib": round(done["figures"]["perf/memory_bytes"] / 2**20),
        "val": {
            name: round(value, 4)
            for name, value in done["figures"].items()
            if name.startswith("val/")
        },
        "environment": json.loads((folder / "environment.jsonl").read_text().splitlines()[-1]),
        "pictures": len(list((folder / "pictures").glob("*"))),
    }


def ray(verb: str, *flags: str) -> dict[str, Any]:
    """The real command, with Ray and NCCL."""
    began = time.monotonic()
    base = ("--track.mode", "off", "--run.folder", str(FOLDER / f"ray_{verb}"))
    done = subprocess.run(
        [sys.executable, "-m", "udl_dist", verb, *flags, *base], capture_output=True, text=True
    )
    environments = sorted(FOLDER.glob(f"ray_{verb}/**/environment.jsonl"))
    device = (
        json.loads(environments[0].read_text().splitlines()[-1]).get("GPU")
        if environments
        else None
    )
    return {
        "rc": done.returncode,
        "seconds": round(time.monotonic() - began, 1),
        "device": device,
        "tail": (done.stdout + done.stderr)[-300:],
    }


def agree(kind: str) -> dict[str, Any]:
    """The losses of 20 steps on the CPU and on the GPU, by precision."""
    flags: dict[str, Any] = {"method__dropout": 0} if kind == "gan" else {}
    cpu = GpuRun(asked(kind, **flags), torch.device("cpu")).losses()
    found = {
        precision: apart(cpu, GpuRun(asked(kind, train__precision=precision, **flags)).losses())
        for precision in ("float32", "tf32", "bfloat16")
    }
    return found | {"expect": "1e-4 (GANs 5e-2: batch normalisation and kinks), 1e-2, 5e-2"}


def bits(kind: str, determinism: str, size: int, channels: int, **flags: Any) -> dict[str, Any]:
    """Whether three runs end with the same bits, and one that goes on from a file."""
    experiment = asked(kind, size, channels, steps=2 * STEPS, run__determinism=determinism, **flags)
    half, hashes = STEPS * experiment.train.batch_size, []
    folder = FOLDER / f"checkpoints_{time.monotonic()}"
    for turn in range(3):
        run = GpuRun(experiment)
        for report in run.reports(every=STEPS, validate=half):
            if turn == 0 and report.images == half:
                checkpoint.save(folder, half, run.learning.tensors(), {})
        hashes.append(run.hash())
    again = GpuRun(experiment)
    again.learning.restore(checkpoint.load(checkpoint.path_of(folder, half))[0])
    list(again.reports(half, STEPS, half))
    return {
        "repeats": len(set(hashes)) == 1,
        "resumes": again.hash() == hashes[0],
        "expect": "anything" if determinism == "none" else "true, true",
    }


def places(kind: str) -> dict[str, Any]:
    """Whether weights are the same wherever decoded images stay, mirrored and over three epochs."""
    hashes = {}
    for where in ("host", "device"):
        run = GpuRun(asked(kind, steps=3 * STEPS, data__flip="true", data__decoded_on=where))
        list(run.reports(every=STEPS))
        hashes[where] = run.hash()
    return {"same": len(set(hashes.values())) == 1, "expect": "true"}


def compiled(kind: str) -> dict[str, Any]:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    # compiled code draws its own noise
    flags: dict[str, Any] = {"method__dropout": 0} if kind == "gan" else {}
    eager, fused = (
        GpuRun(asked(kind, steps=4, train__compile=on, **flags)).losses()
        for on in ("false", "true")
    )
    found = apart(eager, fused)
    return {"frames": dict(counters["frames"]), "apart": found, "expect": "ok > 0, 1e-3"}


def cpu_run() -> dict[str, Any]:
    """A run on the CPU of a machine with a GPU leaves the GPU alone."""
    program = (
        "import sys; from pathlib import Path; import torch; from udl_dist import experiment\nfrom"
        " udl_dist.data.packing.prepare import prepare; from udl_dist.training.distributed import"
        " Ranks\nfrom udl_dist.launch.worker import work; asked ="
        " experiment.load(Path(sys.argv[1]), {})\nwork(asked, prepare(asked.data), Ranks());"
        " print(torch.cuda.is_initialized())"
    )
    job = FOLDER / "cpu.toml"
    job.write_text(asked("ae", run__folder=FOLDER / "cpu").to_toml())
    done = subprocess.run([sys.executable, "-c", program, str(job)], capture_output=True, text=True)
    return {"cuda": done.stdout.strip(), "expect": "False", "tail": done.stderr[-200:]}


def two_bad_steps() -> dict[str, Any]:
    """Two steps of NaN images in a row with batch normalisation: verdicts come a step late on a
    GPU.
    """
    run = GpuRun(asked("ae", steps=10, method__network__norm="batch", train__non_finite="skip"))
    (turn,) = run.learning.phases
    loss = turn.phase.loss

    def spoiled(batch: Batch) -> Any:
        if 144 <= batch.seen < 240:
            batch.images.fill_(float("nan"))
        return loss(batch)

    object.__setattr__(turn.phase, "loss", spoiled)
    rejected = [report.images for report in run.reports(every=10) if report.rejected]
    finite = all(bool(buffer.isfinite().all()) for buffer in run.learning.method.buffers())
    return {"rejected": rejected, "finite": finite, "expect": "[192, 240], true"}


def too_large() -> dict[str, Any]:
    """A batch that no GPU holds is a refusal with the cure."""
    if not GPU:
        return {"skipped": "no GPU"}
    torch.cuda.set_per_process_memory_fraction(0.002)
    try:
        work(
            asked("vae", 128, batch=512, steps=1, run__folder=FOLDER / "large"),
            prepare(asked("vae", 128).data),
            Ranks(DEVICE),
        )
    except TrainingError as error:
        return {"refused": str(error)[:120]}
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    return {"refused": False}


def rate(step: Callable[[], object], images: int, turns: int = 3) -> int:
    step()
    seconds = []
    for _ in range(turns):
        began = time.perf_counter()
        step()
        if GPU:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return round(images / statistics.median(seconds))


def bare(size: int, batch: int, steps: int, flags: dict[str, Any]) -> Callable[[], None]:
    """The loop that a person writes first: the same networks, data on the device, torch's noise,
    fused Adam.
    """
    experiment = asked("vae", size, batch=batch)
    method = methods.find("vae")(experiment.method, experiment.data.shape).to(DEVICE)
    encoder: Callable[..., Any] = method.networks["encoder"]
    decoder: Callable[..., Any] = method.networks["decoder"]
    optimizer = torch.optim.Adam(method.parameters(), 1e-3, fused=True)
    images = torch.rand(2 * batch, 3, size, size, device=DEVICE) * 2 - 1
    half = flags.get("train__precision") == "bfloat16"
    if flags.get("train__compile"):
        encoder, decoder = (
            torch.compile(method.networks[name].forward) for name in ("encoder", "decoder")
        )

    def steps_of_it() -> None:
        for _ in range(steps):
            seen = images[torch.randint(len(images), (batch,), device=DEVICE)]
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=half):
                mean, logvar = encoder(seen).float().chunk(2, 1)
                output = decoder(mean + (logvar / 2).exp() * torch.randn_like(mean)).float()
                error = functional.mse_loss(output.tanh(), seen, reduction="none").flatten(1).sum(1)
                loss = (error + (mean.square() + logvar.exp() - 1 - logvar).sum(1) / 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return steps_of_it


def speed(size: int, batch: int, flags: dict[str, Any]) -> dict[str, Any]:
    steps = 3 if SMALL else 40
    run = GpuRun(asked("vae", size, batch=batch, steps=10**6, **flags))
    reports = run.reports(every=steps)
    ours = rate(lambda: next(reports), steps * batch)
    last = next(reports).metrics
    theirs = rate(bare(size, batch, steps, flags), steps * batch)
    kind = methods.find("vae")
    maker = MethodMaker(kind, run.experiment.method, run.learning.method.shape)
    flops = sizes.cost(maker.on_meta()).flops
    return {
        "size": size,
        "batch": batch,
        **flags,
        "ours": ours,
        "bare": theirs,
        "ratio": round(ours / theirs, 2),
        "tflops": round(ours * flops / 1e12, 1),
        "wait": round(last["perf/data_wait_share"], 3),
        "memory_mib": round(last["perf/memory_bytes"] / 2**20),
    }


def job(name: str, size: int, batch: int, *changes: dict[str, str]) -> dict[str, Any]:
    """Speed, memory and whether all is finite, of a job on random images; `changes` are its
    settings, and those of a small run.
    """
    steps = 2 if SMALL else 20
    base = {
        "data.source": str(source(size)),
        "data.size": str(size),
        "train.batch_size": str(batch),
        "train.total_images": str(10**9),
        "run.device": "auto",
        "track.mode": "off",
        "run.folder": str(FOLDER / "none"),
    }
    flags = base | changes[0] | (changes[1] if SMALL else {})
    run = GpuRun(experiments.load(Path("jobs") / f"{name}.toml", flags))
    reports = run.reports(every=steps)
    if GPU:
        torch.cuda.reset_peak_memory_stats()
    speed = rate(lambda: next(reports), steps * batch)
    last = next(reports).metrics
    return {
        "size": size,
        "batch": batch,
        "images_per_second": speed,
        "gb": round(last["perf/memory_bytes"] / 2**30, 1),
        "wait": round(last["perf/data_wait_share"], 3),
        "finite": bool(np.isfinite(list(last.values())).all()),
        "parameters": sum(each.numel() for each in run.learning.method.parameters()),
    }


# The networks of the jobs; a small run has the same code and a hundredth of the width.
KL = (
    {"train.precision": "bfloat16"},
    {
        "method.widths": "8,16",
        "method.perceptual": "",
        "train.compile": "false",
    },
)
# The authors' widths and batch for CIFAR-10.
R3 = {"method.r3_widths": "768,768,768,768"}, {"method.r3_widths": "8,8,8,8"}


def jobs() -> None:
    """The jobs whose speed on a GPU others have published (docs/cluster.md, the job's comments)."""
    size, batch = (32, 2) if SMALL else (256, 16)
    check("kl_f8_256", job, "kl_f8_256", size, batch, *KL)
    if not SMALL:
        check("kl_f8_256", job, "kl_f8_256", size, batch, KL[0] | {"train.compile": "false"})
    for precision in ("bfloat16",) if SMALL else ("float32", "bfloat16"):
        changed = R3[0] | {"train.precision": precision}
        check(f"R3GAN {precision}", job, "gan_r3_hands64", 32, 4 if SMALL else 512, changed, R3[1])


def ddp() -> dict[str, Any]:
    """DDP by NCCL with one rank against none; NCCL gets the interface as workers are."""
    import torch.distributed as dist

    os.environ.setdefault("NCCL_SOCKET_IFNAME", "=lo")
    plain = GpuRun(asked("gan")).losses()
    dist.init_process_group(
        "nccl" if GPU else "gloo", init_method=f"file://{FOLDER}/meet", rank=0, world_size=1
    )
    try:
        run = GpuRun(asked("gan"))
        where = [DEVICE] if GPU else None
        # `broadcast_buffers` has a new name from torch 2.13 on
        warnings.simplefilter("ignore", FutureWarning)
        for turn in run.learning.phases:
            turn.unfreeze_only_its_networks(run.learning.method)
            turn.module = torch.nn.parallel.DistributedDataParallel(
                turn.module,
                device_ids=where,
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
            )
        return {"apart": apart(plain, run.losses()), "expect": "0 to 1e-6"}
    finally:
        dist.destroy_process_group()


# Without it each rank's statistics are those of its own images, and the losses are others.
SYNC = {"method__network__norm": "batch", "train__sync_batch_norm": "true"}


def two_ranks(kind: str, **flags: Any) -> dict[str, Any]:
    """Two ranks by gloo on one GPU (NCCL refuses two ranks of a GPU) against one."""
    queue = multiprocessing.get_context("spawn").SimpleQueue()
    experiment = asked(kind, **flags)
    multiprocessing.spawn(_rank_of_two, (str(FOLDER), experiment, queue), nprocs=2)  # type: ignore[attr-defined, no-untyped-call]
    both = [queue.get() for _ in range(2)]
    return {
        "equal": both[0] == both[1],
        "apart": apart(GpuRun(experiment).losses(), both[0]),
        "expect": "true, 1e-3",
    }


def _rank_of_two(rank: int, folder: str, experiment: Experiment, queue: Any) -> None:
    import torch.distributed as dist

    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet_{experiment.method_name}",
        rank=rank,
        world_size=2,
    )
    queue.put(GpuRun(experiment).losses())
    dist.destroy_process_group()


def use() -> dict[str, Any]:
    """A model that was trained here, on the CPU and on the GPU."""
    cpu, gpu = (udl_dist.load(FOLDER / "run_vae", device) for device in ("cpu", str(DEVICE)))
    images = torch.rand(300, 3, 32, 32) * 2 - 1
    off = {
        name: float((getattr(cpu, name)(images) - getattr(gpu, name)(images)).abs().max())
        for name in ("encode", "reconstruct")
    }
    return off | {
        "sample": float((cpu.sample(64) - gpu.sample(64)).abs().max()),
        "expect": "1e-4, with TF32 1e-2",
    }


def exported(kind: str) -> dict[str, Any]:
    """A model that lies on the GPU becomes files that open on a CPU."""
    model = udl_dist.load(FOLDER / f"run_{kind}", str(DEVICE))
    export(model, FOLDER / f"exported_{kind}", ExportSettings(torch_export=True))
    again = udl_dist.load(FOLDER / f"exported_{kind}", "cpu").sample(4)
    return {"apart": float((again - model.sample(4)).abs().max()), "expect": "1e-4, with TF32 1e-2"}


def verb(*words: str) -> dict[str, Any]:
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "udl_dist", *words], capture_output=True, text=True, cwd=FOLDER
    )
    return {
        "rc": done.returncode,
        "seconds": round(time.monotonic() - began, 1),
        "tail": (done.stdout + done.stderr)[-200:],
    }


def loader(data: str, size: int, readers: int) -> dict[str, Any]:
    experiment = asked("ae", size, batch=256, data=data, data__readers=readers)
    batches = open_streams(prepare(experiment.data), 0, batch_memory(DEVICE))[0].batches(0, 256)
    count = 4 if SMALL else 40
    next(batches)
    began = time.perf_counter()
    for _ in range(count):
        next(batches)
    seconds = time.perf_counter() - began
    with contextlib.suppress(AttributeError):
        batches.close()  # type: ignore[attr-defined]
    return {
        "data": data,
        "size": size,
        "readers": readers,
        "images_per_second": round(count * 256 / seconds),
    }


def main() -> None:
    say(
        "machine",
        torch=torch.__version__,
        gpu=torch.cuda.get_device_name(0) if GPU else "none",
        cores=os.cpu_count(),
    )
    for kind in KINDS:
        check(f"worker {kind}", worker, kind)
    for kind in KINDS:
        check(f"bits {kind}", bits, kind, "world", 32, 3)
    first = {"train__channels_last": "false"}
    check("bits vae channels-first", lambda: bits("vae", "world", 32, 3, **first))
    check("bits ae, one channel", bits, "ae", "world", 28, 1)
    check("bits vae elastic", bits, "vae", "elastic", 32, 3)
    check("decoded on the device", places, "vae")
    check("bits vae compiled", lambda: bits("vae", "world", 32, 3, train__compile="true"))
    check("bits vae, determinism none", bits, "vae", "none", 32, 3)
    for kind in KINDS:
        check(f"compile {kind}", compiled, kind)
    check("two bad steps", two_bad_steps)
    check("CPU run", cpu_run)
    check("out of memory", too_large)
    check("ddp by NCCL, one rank", ddp)
    check("two ranks by gloo", two_ranks, "vae")
    if GPU:
        check("two ranks, SyncBatchNorm", lambda: two_ranks("ae", **SYNC))
    check("use", use)
    for kind in ("vae", "gan"):
        check(f"export {kind}", exported, kind)
    check("evaluate", verb, "evaluate", str(FOLDER / "run_vae"), "--device", DEVICE.type)
    jobs()
    for kind in KINDS:
        check(f"agree {kind}", agree, kind)
    if not SMALL:
        check(
            "ray train",
            ray,
            "train",
            "jobs/ae_digits.toml",
            "--run.workers",
            "1",
            "--train.epochs",
            "4",
        )
        check(
            "ray search",
            ray,
            "search",
            "jobs/search_vae_digits.toml",
            "--search.trials",
            "4",
            "--search.gpu-share",
            "0.5",
            "--search.budget-images",
            "4000",
            "--search.final-seeds",
            "1",
        )
    for data, size in (("jpeg", 64), ("npy", 64), ("jpeg", 128)):
        for readers in (1, 4, 16):
            check("loader", loader, data, size, readers)
    half = {"train__precision": "bfloat16"}
    variants: list[dict[str, str]] = [
        {},
        {"train__precision": "tf32"},
        half,
        half | first,
        half | {"train__compile": "true"},
        half | {"train__compile": "true", "data__decoded_on": "device"},
        {"train__precision": "tf32", "run__determinism": "none"},
    ]
    for size, batch in ((32, 32),) if SMALL else ((64, 512), (128, 256)):
        for flags in variants[:3] if SMALL else variants:
            check("speed", speed, size, batch, flags)
    say("end", gpu_peak_mib=round(torch.cuda.max_memory_reserved() / 2**20) if GPU else 0)


if __name__ == "__main__":
    main()
