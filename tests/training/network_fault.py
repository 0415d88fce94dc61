"""Two agents on two machines, one of which loses its network for a while; a row says how it went.

    python tests/training/network_fault.py --shards FOLDER --output FOLDER

The machines are network namespaces, joined by a cable that is pulled and plugged in again. While it
is out, connections break (by default they would wait for a quarter of an hour, and a cable that is
plugged in before that costs nothing but the time). Where the system forbids namespaces the same row
is SKIPPED, and another is played over the loopback: one agent and its rank are killed.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

from tests.training.launching import ENVIRONMENT, ROOT, free_port, torchrun  # noqa: E402

NUM_STEPS, SAVE_EVERY, FAULT_AFTER = 24, 5, 8
OUTAGE_SECONDS = 30.0
TIME_LIMIT_SECONDS = 600.0
# Before a connection counts as broken: seconds of retransmissions, not a quarter of an hour.
IMPATIENT_RETRIES = 3
# Of torchrun, when the rank of an agent has failed or another agent is gone.
_NOTICED = ("failed (exitcode", "RendezvousConnectionError", "the agent ended with status")


@dataclass(frozen=True, kw_only=True)
class FaultRow:
    """How a run took a fault.

    Args:
        fault: in words.
        ranks: processes of the run.
        detected_s: from the fault to the first word of an agent about it; None where none came.
        recovered_s: from the fault to the first step after it.
        steps_lost: steps that were trained again.
        loss_difference: largest gap to the losses of the undisturbed run.
        outcome: PASS, FAIL and why, or SKIPPED and why.
    """

    fault: str
    ranks: int
    detected_s: float | None = None
    recovered_s: float | None = None
    steps_lost: int | None = None
    loss_difference: float | None = None
    outcome: str


@dataclass
class Machine:
    """Where an agent runs.

    Args:
        name: of the network namespace; "" is this machine as it is.
        address: by which the other one reaches it.
        variables: for its agent.
    """

    name: str
    address: str
    variables: dict[str, str] = field(default_factory=dict)

    def command(self, *words: str) -> list[str]:
        """The command, as it is started on this machine."""
        return ["ip", "netns", "exec", self.name, *words] if self.name else list(words)


def network_is_lost(shards: Path, output: Path, undisturbed: dict[int, float]) -> FaultRow:
    """Pull the second machine's cable in the middle of a run, and plug it in again."""
    fault = f"a machine loses its network for {OUTAGE_SECONDS:.0f} s"
    why = namespaces_are_forbidden()
    if why:
        return FaultRow(fault=fault, ranks=2, outcome=f"SKIPPED: {why}")
    with two_machines() as (first, second):

        def pull(agent: subprocess.Popen) -> Callable[[], None]:
            ip("-n", second.name, "link", "set", "cable", "down")
            return lambda: ip("-n", second.name, "link", "set", "cable", "up")

        return play(fault, [first, second], pull, shards, output, undisturbed)


def agent_is_lost(shards: Path, output: Path, undisturbed: dict[int, float]) -> FaultRow:
    """Kill the second agent with its rank, and start it again later, as a scheduler does."""
    here = [Machine("", "127.0.0.1"), Machine("", "127.0.0.1")]

    def kill(agent: subprocess.Popen) -> Callable[[], None]:
        end(agent)
        return lambda: None

    fault = f"an agent is killed, and started again after {OUTAGE_SECONDS:.0f} s"
    return play(fault, here, kill, shards, output, undisturbed)


def play(
    fault: str,
    machines: list[Machine],
    strike: Callable[[subprocess.Popen], Callable[[], None]],
    shards: Path,
    output: Path,
    undisturbed: dict[int, float],
) -> FaultRow:
    """Train on two machines, strike the second one, mend it, and judge what came of it.

    Args:
        fault: in words.
        machines: the first is where agents meet.
        strike: given the second agent; returns what mends it.
        shards: what is trained on.
        output: folder for the run and the words of the agents.
        undisturbed: losses of a run that nothing befell, by step.
    """
    output.mkdir(parents=True)
    metrics = output / "run" / "metrics.jsonl"
    port, logs = free_port(), [output / "agent-0.log", output / "agent-1.log"]
    agents = [start_agent(machines, n, port, shards, output) for n in range(2)]
    try:
        wait_until(lambda: len(losses(metrics)) >= FAULT_AFTER, agents, logs)
        mend = strike(agents[1])
        struck = time.monotonic()
        before = max(losses(metrics))
        said = [log.stat().st_size for log in logs]
        detected = None
        while time.monotonic() < struck + OUTAGE_SECONDS:
            if detected is None and any(map(noticed, logs, said)):
                detected = time.monotonic() - struck
            time.sleep(0.1)
        before = max(before, *losses(metrics))
        mend()
        if agents[1].poll() is not None:
            agents[1] = start_agent(machines, 1, port, shards, output)
        wait_until(lambda: has_gone_on(output / "run"), [], logs)
        recovered = time.monotonic() - struck
        wait_until(lambda: all(agent.poll() is not None for agent in agents), [], logs)
    except TimeoutError as error:
        return FaultRow(fault=fault, ranks=2, outcome=f"FAIL: {error}")
    finally:
        for agent in agents:
            end(agent)
    begun = json.loads((output / "run" / "run.json").read_text())["starts"]
    found = losses(metrics)
    gap = max((abs(found[s] - undisturbed[s]) for s in found), default=float("inf"))
    faults = [
        *(
            f"agent {n} ended with {agent.returncode}"
            for n, agent in enumerate(agents)
            if agent.returncode
        ),
        *(["not every step once"] if sorted(found) != sorted(undisturbed) else []),
        *([f"losses differ by {gap:g}"] if gap else []),
        *(
            ["it did not go on from a checkpoint"]
            if len(begun) < 2 or not begun[-1]["step"]
            else []
        ),
        *(["nobody said a word of it"] if detected is None else []),
    ]
    return FaultRow(
        fault=fault,
        ranks=2,
        detected_s=detected,
        recovered_s=recovered,
        steps_lost=before - begun[-1]["step"],
        loss_difference=gap,
        outcome=f"FAIL: {'; '.join(faults)}" if faults else "PASS",
    )


def train_undisturbed(shards: Path, output: Path) -> dict[int, float]:
    """Losses by step of two ranks that nothing befalls."""
    command = [*torchrun(2), "launch/train.py", *flags(shards, output)]
    subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, check=True, capture_output=True)
    return losses(output / "run" / "metrics.jsonl")


def flags(shards: Path, output: Path) -> list[str]:
    """Of the smallest run with some checkpoints."""
    values = (
        f"--data {shards} --output {output}/run --model_size tiny --max_seq_len 256 --batch_size 1 "
        "--gradient_accumulation_steps 2 --num_workers 0 --validation_rows 1 --validate_every 0 "
        f"--save_every {SAVE_EVERY} --max_steps {NUM_STEPS} --samples 0 --device cpu"
    )
    return values.split()


def start_agent(
    machines: list[Machine], number: int, port: int, shards: Path, output: Path
) -> subprocess.Popen:
    """Start the recipe for several machines on one of them."""
    machine = machines[number]
    variables = {
        "HEAD": machines[0].address,
        "PORT": str(port),
        "NODES": str(len(machines)),
        "GPUS": "1",
        "NODE_RANK": str(number),
        "SETTLED": "0",
        "PET_LOCAL_ADDR": machine.address,
        **machine.variables,
    }
    with (output / f"agent-{number}.log").open("ab") as log:
        return subprocess.Popen(
            machine.command(str(ROOT / "launch/cluster/torchrun_nodes.sh"), *flags(shards, output)),
            env=ENVIRONMENT | variables,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


@contextmanager
def two_machines() -> Iterator[tuple[Machine, Machine]]:
    """Two namespaces with a cable between them; gone afterwards."""
    names = [f"meloformer-{os.getpid()}-{letter}" for letter in "ab"]
    addresses = ["10.231.7.1", "10.231.7.2"]
    try:
        for name in names:
            ip("netns", "add", name)
        cable = ("link", "add", "cable", "netns", names[0], "type", "veth")
        ip(*cable, "peer", "name", "cable", "netns", names[1])
        for name, address in zip(names, addresses, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "cable")
            for device in ("lo", "cable"):
                ip("-n", name, "link", "set", device, "up")
            retries = f"net.ipv4.tcp_retries2={IMPATIENT_RETRIES}"
            ip("netns", "exec", name, "sysctl", "-qw", retries)
        variables = {"GLOO_SOCKET_IFNAME": "cable"}
        first, second = (
            Machine(name, address, variables)
            for name, address in zip(names, addresses, strict=True)
        )
        yield first, second
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def namespaces_are_forbidden() -> str:
    """Why this process may not make network namespaces; "" where it may."""
    try:
        with two_machines():
            return ""
    except FileNotFoundError as error:
        return f"no program {error.filename}"
    except subprocess.CalledProcessError as error:
        return " ".join(error.stderr.split()) or str(error)


def ip(*words: str) -> None:
    """The command of that name."""
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def losses(metrics: Path) -> dict[int, float]:
    """Loss by step, of the lines that are whole."""
    lines = metrics.read_text().splitlines(keepends=True) if metrics.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    return {line["step"]: line["loss"] for line in found if "loss" in line}


def has_gone_on(run: Path) -> bool:
    """Whether a step has been trained since a second start."""
    starts = json.loads((run / "run.json").read_text())["starts"]
    return len(starts) > 1 and max(losses(run / "metrics.jsonl")) > starts[-1]["step"]


def noticed(log: Path, start: int) -> bool:
    """Whether an agent has said something of a fault since then."""
    said = log.read_bytes()[start:].decode(errors="replace")
    return any(words in said for words in _NOTICED)


def wait_until(
    is_so: Callable[[], bool], running: list[subprocess.Popen], logs: list[Path]
) -> None:
    """Wait, while these go on.

    Raises:
        TimeoutError: it took too long, or one of them has ended.
    """
    deadline = time.monotonic() + TIME_LIMIT_SECONDS
    while not is_so():
        ended = [agent.returncode for agent in running if agent.poll() is not None]
        if ended or time.monotonic() > deadline:
            said = [log.read_text(errors="replace")[-600:] for log in logs]
            raise TimeoutError(f"agents ended: {ended}; their last words: {said}")
        time.sleep(0.1)


def end(agent: subprocess.Popen) -> None:
    """Kill an agent and all that it has started."""
    try:
        family = psutil.Process(agent.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    for process in family:
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    agent.kill()
    agent.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    wanted = parser.parse_args()
    expected = train_undisturbed(wanted.shards.resolve(), wanted.output.resolve() / "undisturbed")
    for drill in (network_is_lost, agent_is_lost):
        folder = wanted.output.resolve() / drill.__name__
        print(json.dumps(asdict(drill(wanted.shards.resolve(), folder, expected))), flush=True)
