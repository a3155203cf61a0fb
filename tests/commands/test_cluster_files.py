"""The files in cluster/: each opens with its command, parses, and is closed; what can be checked
without that cloud.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

CLUSTER = Path(__file__).parent.parent.parent / "cluster"
PODS = ("raycluster.yaml", "rayjob-train.yaml", "rayjob-search.yaml")
pytestmark = pytest.mark.filterwarnings("default")


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((CLUSTER / name).read_text()))


def cluster_of(name: str) -> dict[str, Any]:
    spec: dict[str, Any] = documents(name)[0]["spec"]
    found: dict[str, Any] = spec.get("rayClusterSpec", spec)
    return found


def pods(name: str) -> list[dict[str, Any]]:
    spec = cluster_of(name)
    found = [spec["headGroupSpec"]["template"]["spec"]]
    found += [group["template"]["spec"] for group in spec["workerGroupSpecs"]]
    submitter = documents(name)[0]["spec"].get("submitterPodTemplate")
    return found + ([submitter["spec"]] if submitter else [])


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("Dockerfile", "docker build"),
        ("ray-cluster.yaml", "ray up"),
        ("raycluster.yaml", "kubectl apply"),
        ("rayjob-train.yaml", "kubectl apply"),
        ("rayjob-search.yaml", "kubectl apply"),
        ("slurm.sbatch", "sbatch"),
        ("local.sh", "cluster/local.sh up|down|status"),
    ],
)
def test_each_file_opens_with_its_command(name: str, command: str) -> None:
    lines = [
        line for line in (CLUSTER / name).read_text().splitlines() if not line.startswith("#!")
    ]
    assert lines[0].startswith(f"# {command}")


def test_no_file_is_left_out_here() -> None:
    named = {"Dockerfile", "ray-cluster.yaml", *PODS, "slurm.sbatch", "local.sh", "README.md"}
    assert {file.name for file in CLUSTER.iterdir()} == named


@pytest.mark.parametrize("name", PODS)
def test_each_cluster_asks_for_a_token_and_grows_by_itself(name: str) -> None:
    spec = cluster_of(name)
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert all(group["minReplicas"] < group["maxReplicas"] for group in spec["workerGroupSpecs"])


@pytest.mark.parametrize("name", PODS)
def test_each_pod_may_do_the_least(name: str) -> None:
    for pod in pods(name):
        context = pod["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] == 1000
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False
            assert own["readOnlyRootFilesystem"] is True
            assert own["capabilities"] == {"drop": ["ALL"]}
            assert {"cpu", "memory"} <= set(container["resources"]["limits"])
            assert {"name": "tmp", "mountPath": "/tmp"} in container["volumeMounts"], (
                "a read-only root needs one"
            )
            assert not [each for each in container.get("env", []) if "secretKeyRef" in str(each)], (
                "secrets are files"
            )


@pytest.mark.parametrize("name", PODS)
def test_a_network_policy_is_for_each_of_its_pods(name: str) -> None:
    policy = next(each for each in documents(name) if each["kind"] == "NetworkPolicy")
    labels = policy["spec"]["podSelector"]["matchLabels"]
    spec = cluster_of(name)
    templates = [
        spec["headGroupSpec"]["template"],
        *(group["template"] for group in spec["workerGroupSpecs"]),
    ]
    if submitter := documents(name)[0]["spec"].get("submitterPodTemplate"):
        templates.append(submitter)
    assert all(labels.items() <= template["metadata"]["labels"].items() for template in templates)
    assert policy["spec"]["policyTypes"] == ["Ingress"]


@pytest.mark.parametrize("name", ["rayjob-train.yaml", "rayjob-search.yaml"])
def test_a_job_runs_a_file_that_is_in_the_image(name: str) -> None:
    from udl_dist.commands import job as jobs

    verb, file, *flags = documents(name)[0]["spec"]["entrypoint"].removeprefix("udl ").split()
    assert file.startswith("/opt/udl-dist/jobs/")
    given = dict(
        zip(
            (flag.removeprefix("--").replace("-", "_") for flag in flags[::2]),
            flags[1::2],
            strict=True,
        )
    )
    assert given.pop("run.address") == "auto"
    assert jobs.load(CLUSTER.parent / file.removeprefix("/opt/udl-dist/"), given).verb == verb


def test_rays_launcher_accepts_its_file() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = documents("ray-cluster.yaml")[0]
    validate_config(prepare_config(config))
    starts = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    assert all("RAY_AUTH_MODE=token" in command for command in starts if "ray start" in command)
    assert any("--dashboard-host=127.0.0.1" in command for command in starts)


def test_the_image_runs_as_an_ordinary_user_and_the_base_can_be_pinned() -> None:
    text = (CLUSTER / "Dockerfile").read_text()
    assert re.findall(r"^USER (.*)$", text, re.MULTILINE) == ["1000:1000"]
    assert re.search(r"^ARG BASE=.*\nFROM \$\{BASE\}", text, re.MULTILINE)
    copied = [
        part
        for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE)
        for part in line.split()[:-1]
    ]
    assert copied and "." not in copied
    assert all((CLUSTER.parent / part).exists() for part in copied)


@pytest.mark.parametrize("name", ["local.sh", "slurm.sbatch"])
def test_the_scripts_parse_and_are_closed(name: str) -> None:
    subprocess.run(["bash", "-n", CLUSTER / name], check=True)
    text = (CLUSTER / name).read_text()
    assert "set -euo pipefail\numask 077\n" in text
    assert "RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=" in text
    assert "--dashboard-host=127.0.0.1" in text or "--include-dashboard=false" in text
    assert "ray stop" not in text and "pkill" not in text, "it would end what others started"


def test_what_local_sh_does_not_know_is_refused(tmp_path: Path) -> None:
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}

    def local(verb: str) -> subprocess.CompletedProcess[str]:
        command = [str(CLUSTER / "local.sh"), verb]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    done = local("dwon")
    assert (done.returncode, done.stderr) == (
        2,
        "local.sh: unexpected argument 'dwon': cluster/local.sh up|down|status\n",
    )
    for verb, code in (("status", 1), ("down", 0)):
        done = subprocess.run(
            [CLUSTER / "local.sh", verb],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (code, "is not up\n")


@pytest.mark.long
def test_a_slurm_job_leaves_a_checkpoint_on_notice_and_goes_back_into_the_queue(
    tmp_path: Path,
) -> None:
    """One node, with stand-ins for Slurm's own commands."""
    stubs = {
        "srun": 'exec "$@"',
        "scontrol": '[ "$1" = show ] && hostname -s || echo "$@" >>"$UDL_SHARED/told"',
        "udl": f'exec {sys.executable} -m udl_dist "$@"',
    }
    (tmp_path / "bin").mkdir()
    for name, text in stubs.items():
        (tmp_path / "bin" / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    job = str(40_000 + os.getpid() % 1_000)
    environment = os.environ | {
        "PATH": f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "SLURM_JOB_ID": job,
        "SLURM_JOB_NODELIST": "here",
        "SLURM_CPUS_PER_TASK": "1",
        "UDL_SHARED": str(tmp_path),
    }
    job_file = str(CLUSTER.parent / "jobs" / "ae_digits.toml")
    command = [
        "bash",
        str(CLUSTER / "slurm.sbatch"),
        job_file,
        "--run.folder",
        str(tmp_path / "run"),
        "--run.workers",
        "1",
        "--train.epochs",
        "3000",
        "--track.mode",
        "off",
    ]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "curves.jsonl").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.5)
    assert (tmp_path / f"slurm-{job}" / "token").stat().st_mode & 0o777 == 0o600
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 143, out
    assert "stopped; the same command goes on" in out
    assert list((tmp_path / "run" / "checkpoints").iterdir())
    assert (tmp_path / "told").read_text() == f"requeue {job}\n"
    assert not (tmp_path / f"slurm-{job}").exists()
