"""What a run will do, before it starts: records, steps, parameters, FLOPs, memory."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from math import ceil, prod

from udl_dist import methods
from udl_dist.data.packing.prepare import settled, survey
from udl_dist.data.packing.sources import class_names
from udl_dist.errors import UsageError
from udl_dist.evaluation.settings import COST
from udl_dist.experiment import Experiment
from udl_dist.launch import conflicts
from udl_dist.launch.capacity import automatic_here
from udl_dist.storage.uris import name_of


@dataclass(frozen=True)
class Plan:
    """A plan; `memory_bytes` is an estimate of one rank's peak, device and host together."""

    folder: str
    method: str
    source: str
    shape: tuple[int, int, int]  # channels, height, width
    packed: bool
    records: int  # 0: unknown
    held_out_records: int
    held_out_is: str  # where they come from
    left_out: int  # records that cannot be read
    classes: tuple[str, ...]
    shards: int
    workers: int | str  # a range: as many as can be had
    determinism: str
    batch_size: int
    images_per_rank: tuple[int, int]  # least and most of one step
    steps: int
    total_images: int
    parameters: dict[str, int]
    networks: dict[str, str]  # kind and widths of each
    computes: str  # precision, memory format and compiler of a step
    flops_per_image: int  # of a step, forward and backward; a multiply-add is two; 0: unknown
    memory_bytes: int
    decoded_share: float  # of the records that stay decoded in memory
    decoded_bytes: int  # that they take
    decoded_on: str
    readers: int  # decode threads of a worker; 0: none, or not known
    validation_images: int  # held-out images that a validation sees
    validate_images: int  # images between validations
    validation_share: float  # of the run, estimated
    warnings: tuple[str, ...]

    def lines(self) -> list[str]:
        """The plan for a person."""
        least, most = self.images_per_rank
        share = str(least) if least == most else f"{least} to {most}"
        networks = ", ".join(f"{name} {count:,}" for name, count in self.parameters.items())
        seen = "" if self.packed else " (not packed yet: an estimate)"
        # Measured: 1.09, 1.28 and 1.40 times the time of a step with 1, 2 and 4 workers.
        elastic = "; elastic: a step takes about 1.1 (1 worker) to 1.4 (4 workers) times as long"
        channels, height, width = self.shape
        whence = f" ({self.held_out_is})" if self.held_out_records and self.held_out_is else ""
        held_out = f"{self.held_out_records:,} held out{whence}"
        colour = "colour" if channels == 3 else "gray"
        lines = [
            f"run folder   {self.folder}",
            (
                f"data         {self.source}: {self.records:,} records in {self.shards}"
                f" shard{'s' * (self.shards != 1)}, {held_out}{seen}"
            ),
            f"classes      {len(self.classes)}: {class_names(self.classes)}"
            if self.classes
            else "",
            f"images       {height} x {width} pixels, {colour} (others: data.size, data.channels)",
            f"left out     {self.left_out:,} records that cannot be read (data.damaged)"
            if self.left_out
            else "",
            (
                f"method       {self.method}: {sum(self.parameters.values()):,} parameters"
                f" ({networks})"
            ),
            f"networks     {', '.join(f'{name} {kind}' for name, kind in self.networks.items())}",
            f"flops        {self._flops()}",
            f"computes     {self.computes}",
            (
                f"steps        {self.steps:,} of {self.batch_size} images, {self.total_images:,}"
                " images in all"
            ),
            self._validations(),
            f"workers      {self.workers}, {share} images each a step"
            + elastic * (self.determinism == "elastic"),
            f"memory       about {self.memory_bytes / 2**20:,.0f} MiB a worker",
            self._decoded(),
            f"threads      {self.readers} of a worker read and decode ahead"
            if self.readers
            else "",
            *(f"warning      {warning}" for warning in self.warnings),
        ]
        return [line for line in lines if line]

    def _flops(self) -> str:
        if not self.flops_per_image:
            return "not known, nor is the memory of a step: a loss needs numbers to run"
        return f"{self.flops_per_image:,} an image and step, forward and backward of every phase"

    def _decoded(self) -> str:
        if not self.decoded_bytes:
            return "decoded      in every epoch (data.decoded_bytes, data.random_crop)"
        if self.decoded_on == "device":
            return "decoded      once: as many images as fit stay in the memory of each device"
        share, held = 100 * self.decoded_share, f"{self.decoded_bytes / 2**20:,.1f} MiB a machine"
        return f"decoded      once: {share:.3g} % of the images stay in memory, {held}"

    def _validations(self) -> str:
        if not self.validation_images:
            return ""
        often = (
            f"every {self.validate_images:,} images and "
            if self.validate_images < self.total_images
            else ""
        )
        return (
            f"validations  {often}at the end, of {self.validation_images:,} held-out images: about "
            f"{100 * self.validation_share:.2g} % of the run"
        )

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def checked_plan(experiment: Experiment) -> Plan:
    """`plan_here`, and checks of `train.init_from` and `run.best`, which build the networks."""
    experiment = experiment.replace(data=settled(experiment.data))
    # First what needs no torch: its import takes 1.5 s.
    made = plan_here(experiment)
    if experiment.train.init_from:
        from udl_dist.inference import warm_start

        warm_start.check(experiment)
    if experiment.run.best:
        from udl_dist.training.validation import refuse_unknown_metric

        kind = methods.find(experiment.method_name)
        method = kind(experiment.method, experiment.data.shape, made.classes)
        refuse_unknown_metric("run.best", experiment.run.best, method)
    return made


def plan_here(experiment: Experiment) -> Plan:
    """The plan of a run; raises UsageError if it cannot possibly fit into this machine."""
    made = plan(experiment)
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    # The estimate is too high rather than too low, and a GPU has memory of its own: twice what is
    # here is sure to fail.
    if not experiment.run.address and made.memory_bytes > 2 * machine:
        raise UsageError(
            f"a worker would need about {made.memory_bytes / 2**30:,.0f} GiB of memory, this"
            f" machine has {machine / 2**30:,.0f}: lower train.batch_size, data.size,"
            " method.latent_dim or the widths of the networks"
        )
    return made


def plan(experiment: Experiment) -> Plan:
    """The plan of a run; raises UsageError or DataError for all that can be refused now."""
    # Size and channels come from the images unless they are given.
    experiment = automatic_here(experiment.replace(data=settled(experiment.data)))
    train, run = experiment.train, experiment.run
    counted = run.workers != "auto"  # else of a cluster, which knows its GPUs
    least, workers = run.least_workers, run.most_workers
    # Of a source that is not packed yet this is an estimate.
    seen = survey(experiment.data)
    conflicts.refuse_few_images(experiment, seen.held_out_records)
    conflicts.refuse_best(run.best, seen.held_out_records)
    # Imports torch, which takes a second or two, after all that can be refused without it.
    from udl_dist.data.loader.decoded import decoded_bytes
    from udl_dist.data.loader.records import decode_threads
    from udl_dist.launch.memory import StepMemory
    from udl_dist.methods.networks import sizes
    from udl_dist.training import arithmetic

    kind = methods.find(experiment.method_name)
    make = sizes.MethodMaker(kind, experiment.method, experiment.data.shape, seen.classes)
    method = make.on_meta()
    networks = method.networks
    mixing = [name for name, network in networks.items() if sizes.mixes_images(network)]
    if run.determinism == "elastic":
        conflicts.refuse_inelastic(experiment, mixing)
    conflicts.refuse_lone_images(experiment, mixing)
    cost = sizes.cost_of(make)
    total = train.length(seen.records)
    noted = method.check_images(seen.records, total) if seen.records else ()  # 0: not known
    evaluated = experiment.evaluate.seen(seen.held_out_records)
    interval = experiment.evaluate.interval(total, evaluated)
    validations = ceil(total / interval) if evaluated else 0
    wanted = seen.records * prod(experiment.data.shape)
    held = decoded_bytes(experiment.data, wanted)
    # The largest share of a step is that of the smallest group.
    share = ceil(train.batch_size / least)
    parameters = {
        name: sum(weight.numel() for weight in network.parameters())
        for name, network in networks.items()
    }
    memory = StepMemory.of(method, cost, train)
    # An accumulated step has the activations of one part at a time.
    rows = ceil(share / train.accumulate)
    return Plan(
        folder=run.folder,
        method=experiment.method_name,
        source=name_of(experiment.data.source),
        shape=experiment.data.shape,
        packed=seen.packed,
        records=seen.records,
        held_out_records=seen.held_out_records,
        held_out_is=seen.held_out_is,
        left_out=seen.left_out,
        classes=seen.classes,
        shards=seen.shards,
        workers=run.workers if counted else "one a GPU of the cluster",
        determinism=run.determinism,
        batch_size=train.batch_size,
        images_per_rank=(train.batch_size // workers if counted else 1, share),
        steps=total // train.batch_size,
        total_images=total,
        parameters=parameters,
        networks={name: sizes.in_words(network) for name, network in networks.items()},
        computes=arithmetic.in_words(method, train),
        flops_per_image=cost.flops,
        memory_bytes=memory.fixed_bytes + rows * memory.image_bytes,
        decoded_share=held / max(1, wanted),
        decoded_bytes=held,
        decoded_on=experiment.data.decoded_on,
        # The cores of another machine are not known.
        readers=decode_threads(0 if run.address else experiment.data.readers, workers),
        validation_images=evaluated,
        validate_images=interval,
        validation_share=validations * evaluated * COST / total,
        warnings=(*sizes.warnings(networks), *noted),
    )
