"""The recipes of launch/cluster: what they start, with which flags, and what ends them."""

import os
import re
import shlex
import signal
import subprocess
from pathlib import Path

import pytest
import yaml

from meloformer.training.stopping import STATUS_VARIABLE
from tests.launch.cluster_scripts import (
    CLUSTER,
    SCANCEL,
    SCONTROL,
    SRUN,
    SRUN_UNTIL_STOPPED,
    WANTED,
    put,
    read_torchrun,
    run,
    wait_for,
)
from tests.training.launching import ENVIRONMENT, ROOT

SCRIPTS = sorted(path for path in CLUSTER.iterdir() if path.suffix in (".sh", ".sbatch"))
SLURM = {
    "SLURM_JOB_ID": "4711",
    "SLURM_JOB_NODELIST": "127.0.0.1",
    "SLURM_JOB_NUM_NODES": "1",
    "SLURM_GPUS_ON_NODE": "1",
    "SLURM_CPUS_PER_TASK": "1",
    "SLURM_SUBMIT_DIR": str(ROOT),
}


def documents() -> tuple[dict, dict]:
    """The service and the job of kubernetes.yaml."""
    service, job = yaml.safe_load_all((CLUSTER / "kubernetes.yaml").read_text())
    assert (service["kind"], job["kind"]) == ("Service", "Job")
    return service, job


def container() -> dict:
    (only,) = documents()[1]["spec"]["template"]["spec"]["containers"]
    return only


def variables_of(container: dict) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in container["env"]}


def sbatch_options() -> dict[str, str]:
    """The #SBATCH lines, which SLURM reads up to the first command."""
    head, _, rest = (CLUSTER / "slurm.sbatch").read_text().partition("\nset -e")
    assert "#SBATCH" not in rest
    found = re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", head, re.MULTILINE)
    assert len(found) == head.count("\n#SBATCH")
    return dict(found)


def patience_seconds() -> int:
    """Between SIGTERM and SIGKILL, as torchrun_nodes.sh has it."""
    text = (CLUSTER / "torchrun_nodes.sh").read_text()
    return int(text.partition("TIMEOUT:-")[2].partition("}")[0])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_script_is_valid_and_can_be_started(script: Path) -> None:
    assert os.access(script, os.X_OK)
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_readme_names_every_recipe_and_none_that_is_missing() -> None:
    text = (CLUSTER / "README.md").read_text()
    named = set(re.findall(r"launch/[\w/]+(?:\.\w+)?", text))
    assert [name for name in named if not (ROOT / name).exists()] == []
    files = {path.name for path in CLUSTER.iterdir()} - {"README.md"}
    assert files <= {Path(name).name for name in named}


def test_agents_of_several_nodes_meet_at_the_head_and_go_on_after_any_restart(
    start, tmp_path: Path
) -> None:
    found = read_torchrun(
        start("torchrun_nodes.sh", *WANTED, HEAD="node-1", NODES="2:4", GPUS="8", RUN_ID="mine")
    )
    assert (found.nnodes, found.nproc_per_node, found.max_restarts) == ("2:4", "8", 3)
    assert found.rdzv_backend == "c10d" and found.rdzv_id == "mine"
    assert re.fullmatch(r"node-1:\d+", found.rdzv_endpoint) and not found.rdzv_conf
    assert found.flags.resume == "auto" and found.flags.output == Path("runs/a")
    lines = (tmp_path / "said.environment").read_text().splitlines()
    variables = dict(line.split("=", 1) for line in lines if "=" in line)
    assert int(variables["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) > 30, "longer than torchrun by itself"
    assert variables["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1", "or no agent joins later"
    assert int(variables[STATUS_VARIABLE]), "or machines that stay take a stop for the end"


def test_an_agent_that_fails_is_started_again_once_the_run_has_lived(
    commands: Path, tmp_path: Path
) -> None:
    put(commands, torchrun='#!/usr/bin/env bash\necho once >> "$SAID"\nexit $(wc -l < "$SAID")\n')
    put(commands, sleep="#!/usr/bin/env bash\n")
    script = [str(CLUSTER / "torchrun_nodes.sh")]
    variables = {"HEAD": "a", "NODES": "2", "GPUS": "8", "TRIES": "3"}
    assert run(script, commands, tmp_path, variables).returncode == 1, "as of a wrong flag"
    (tmp_path / "said").unlink()
    done = run(script, commands, tmp_path, variables | {"SETTLED": "0"})
    assert done.returncode == 3 and done.stderr.count("another one starts") == 2


def test_an_agent_that_is_stopped_is_waited_for_and_not_started_again(
    commands: Path, tmp_path: Path
) -> None:
    put(commands, torchrun=SRUN_UNTIL_STOPPED)
    said = tmp_path / "said"
    with subprocess.Popen(
        [str(CLUSTER / "torchrun_nodes.sh"), *WANTED],
        env={"PATH": f"{commands}:/usr/bin:/bin", "SAID": str(said), "HEAD": "a", "NODES": "2"}
        | {"GPUS": "8", "SETTLED": "0"},
    ) as agent:
        wait_for(Path(f"{said}.pid"))
        agent.terminate()
        assert agent.wait(300) == 1
    assert said.read_text() == "ranks have saved\n"


def test_flags_of_the_user_come_after_those_of_a_recipe_and_win(start) -> None:
    flags = (*WANTED, "--resume", "runs/a/checkpoints/step-5")
    found = read_torchrun(start("torchrun_nodes.sh", *flags, HEAD="a", NODES="1", GPUS="1"))
    assert found.flags.resume == "runs/a/checkpoints/step-5"


@pytest.mark.parametrize("variable", ["NODE_RANK", "SLURM_NODEID", "JOB_COMPLETION_INDEX"])
def test_the_store_is_on_the_first_node_where_nodes_have_numbers(start, variable: str) -> None:
    for node, is_host in (("0", "is_host=1"), ("1", "is_host=0"), ("10", "is_host=0")):
        variables = {"HEAD": "a", "NODES": "2", "GPUS": "8", variable: node}
        assert read_torchrun(start("torchrun_nodes.sh", **variables)).rdzv_conf == is_host


def test_deepspeed_takes_a_hostfile_with_ssh_and_without(start) -> None:
    said = start("deepspeed_nodes.sh", *WANTED)
    after = ["launch/train.py", "--resume", "auto", *WANTED]
    assert said == ["deepspeed", "--hostfile", "launch/cluster/hostfile", *after]
    variables = {"HOSTFILE": "/mine", "NODE_RANK": "1", "HEAD": "node-1"}
    said = start("deepspeed_nodes.sh", *WANTED, **variables)
    here = ["--no_ssh", "--node_rank", "1", "--master_addr", "node-1"]
    assert said == ["deepspeed", "--hostfile", "/mine", *here, *after]


def test_the_slurm_job_asks_for_what_its_commands_need() -> None:
    options = sbatch_options()
    assert options["ntasks-per-node"] == "1", "torchrun starts the processes of a node"
    assert options["requeue"] == "" and options["open-mode"] == "append"
    to_the_shell, _, seconds = options["signal"].partition("@")
    assert to_the_shell == "B:USR1"
    assert int(seconds) > patience_seconds(), "time to save, and to be put back"


def test_the_slurm_job_starts_one_agent_on_each_node(start) -> None:
    variables = SLURM | {"SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "8"}
    found = read_torchrun(start("slurm.sbatch", *WANTED, **variables, NAMES="node-1\nnode-2"))
    assert (found.nnodes, found.nproc_per_node, found.rdzv_id) == ("2", "8", "4711")
    assert found.rdzv_endpoint.startswith("node-1:") and found.rdzv_conf == "is_host=1"
    assert found.flags.resume == "auto" and found.flags.model_size == "tiny"


def test_the_slurm_job_is_put_back_after_its_ranks_have_ended(
    commands: Path, tmp_path: Path
) -> None:
    put(commands, srun=SRUN_UNTIL_STOPPED, scontrol=SCONTROL, scancel=SCANCEL)
    said = tmp_path / "said"
    with subprocess.Popen(
        [str(CLUSTER / "slurm.sbatch"), *WANTED],
        env=SLURM | {"PATH": f"{commands}:/usr/bin:/bin", "SAID": str(said)},
    ) as job:
        wait_for(Path(f"{said}.pid"))
        job.send_signal(signal.SIGUSR1)
        assert job.wait(300) == 0
    assert said.read_text().splitlines() == [
        "scancel --signal=TERM 4711",
        "ranks have saved",
        "scontrol requeue 4711",
    ]


def test_a_slurm_job_that_fails_is_not_put_back(commands: Path, tmp_path: Path) -> None:
    put(commands, srun="#!/usr/bin/env bash\nexit 3\n", scontrol=SCONTROL)
    done = run([str(CLUSTER / "slurm.sbatch")], commands, tmp_path, SLURM)
    assert done.returncode == 3 and not (tmp_path / "said").exists()


def test_the_pods_of_the_job_find_each_other() -> None:
    service, job = documents()
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": job["metadata"]["name"]}
    assert pod["subdomain"] == service["metadata"]["name"]
    variables = variables_of(container())
    first = f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert variables["HEAD"] == first
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] == int(variables["NODES"])
    limits = container()["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == variables["GPUS"]


def test_a_pod_that_is_lost_comes_back_and_has_time_and_room() -> None:
    spec = documents()[1]["spec"]
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] == "OnFailure" and spec["backoffLimit"] > 0
    assert pod["terminationGracePeriodSeconds"] > patience_seconds()
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container()["volumeMounts"]}
    assert mounts["/dev/shm"]["emptyDir"]["medium"] == "Memory"
    assert "persistentVolumeClaim" in mounts["/shared"]


def test_the_pods_command_is_one_that_torchrun_and_the_recipe_take(start) -> None:
    script, *flags = container()["command"]
    variables = variables_of(container()) | {"JOB_COMPLETION_INDEX": "3"}
    found = read_torchrun(start(Path(script).name, *flags, **variables))
    assert (found.nnodes, found.nproc_per_node, found.rdzv_conf) == ("4", "8", "is_host=0")
    assert found.flags.output == Path("/shared/runs/small") and found.flags.resume == "auto"


def one_machine(name: str, tmp_path: Path) -> tuple[list[str], dict[str, str]]:
    """The command that a recipe ends in, and its variables for a cluster of this machine alone."""
    alone = {"HEAD": "127.0.0.1", "NODES": "1", "GPUS": "1", "PORT": "0"}
    if name in ("torchrun", "deepspeed", "accelerate"):
        return [str(CLUSTER / "one_node.sh")], {"LAUNCHER": name, "GPUS": "1"}
    if name == "slurm":
        return [str(CLUSTER / "slurm.sbatch")], SLURM
    if name == "kubernetes":
        script, *flags = container()["command"]
        variables = variables_of(container()) | {"JOB_COMPLETION_INDEX": "0"} | alone
        return [str(ROOT / script), *flags], variables
    if name == "deepspeed_nodes":
        hostfile = tmp_path / "hostfile"
        hostfile.write_text("# one machine\nlocalhost slots=1\n")
        no_ssh = {"NODE_RANK": "0", "HEAD": "127.0.0.1"}
        return [str(CLUSTER / "deepspeed_nodes.sh")], {"HOSTFILE": str(hostfile)} | no_ssh
    return [str(CLUSTER / "torchrun_nodes.sh")], alone


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("torchrun", "deepspeed", "accelerate"),
        *("torchrun_nodes", "deepspeed_nodes", "slurm", "kubernetes"),
    ],
)
def test_every_recipe_runs_on_a_cluster_of_one_machine(
    name: str, chorale_shards: Path, commands: Path, tmp_path: Path
) -> None:
    put(commands, srun=SRUN, scontrol=SCONTROL)
    command, variables = one_machine(name, tmp_path)
    flags = shlex.split(
        f"--data {chorale_shards} --output {tmp_path}/run --model_size tiny --max_seq_len 256 "
        "--num_workers 0 --max_steps 2 --device cpu --dry_run"
    )
    done = subprocess.run(
        [*command, *flags],
        cwd=ROOT,
        env=ENVIRONMENT | {"PATH": f"{commands}:{ENVIRONMENT['PATH']}"} | variables,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "1 on cpu" in done.stdout and "2 steps" in done.stdout
    assert not (tmp_path / "run").exists()


def test_the_hostfile_is_one_that_the_launcher_reads() -> None:
    lines = (CLUSTER / "hostfile").read_text().splitlines()
    hosts = [line for line in lines if line and not line.startswith("#")]
    # Source: deepspeed.launcher.runner._parse_hostfile; importing it takes seconds.
    assert hosts and all(re.fullmatch(r"\S+\s+slots=\d+", line) for line in hosts)
    assert len({line.split()[0] for line in hosts}) == len(hosts)
