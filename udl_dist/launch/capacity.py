"""How many processes fit on a Ray cluster, by CPU cores and GPUs."""

from __future__ import annotations

from collections.abc import Mapping


def of_cluster(needs: Mapping[str, float]) -> int:
    """How many processes with these needs (CPU, GPU) fit on the living nodes, if nobody else used
    them.
    """
    import ray

    return sum(fitting(node["Resources"], needs) for node in ray.nodes() if node["Alive"])


def fitting(there: Mapping[str, float], needs: Mapping[str, float]) -> int:
    """How many fit into these resources: the scarcest decides. A share of a GPU lies on one GPU,
    never on two.
    """
    return min(
        int(there.get(kind, 0)) * int(1 / each + 1e-9)
        if each < 1
        else int(there.get(kind, 0) // each)
        for kind, each in needs.items()
    )


def in_kinds(resources: Mapping[str, float], times: int = 1) -> str:
    """Resources for a person: "4 CPU cores and 2 GPUs"."""
    names = {"CPU": "CPU cores", "GPU": "GPUs"}
    return " and ".join(f"{amount * times:g} {names[kind]}" for kind, amount in resources.items())


def totals(needs: Mapping[str, float]) -> dict[str, float]:
    """What the cluster has of each kind that is needed, in use or not."""
    import ray

    return {kind: float(ray.cluster_resources().get(kind, 0)) for kind in needs}
