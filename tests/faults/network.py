"""Rows of the table of faults: two agents on two machines, one of which goes away and comes back.

The machines are network namespaces, joined by a cable that is pulled and plugged in again. While it
is out, connections break (by default they would wait for a quarter of an hour, and a cable that is
plugged in before that costs nothing but the time). Where the system forbids namespaces the same row
is SKIPPED, and another is played over the loopback: one agent and its rank are killed.
"""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from tests.faults.rows import (
    NUM_STEPS,
    SAVE_EVERY,
    Drill,
    FaultRow,
    SkippedError,
    fault,
    flags,
)
from tests.faults.runs import Run
from tests.training.launching import ROOT, free_port

FAULT_AFTER = (SAVE_EVERY + NUM_STEPS) // 2 - 1
OUTAGE_SECONDS = 30.0
# Before a connection counts as broken: seconds of retransmissions, not a quarter of an hour.
IMPATIENT_RETRIES = 3
# Of torchrun, when the rank of an agent has failed or another agent is gone.
_NOTICED = r"failed \(exitcode|RendezvousConnectionError|the agent ended with status"


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


@fault(f"a machine loses its network for {OUTAGE_SECONDS:.0f} s", ranks=2)
def network_is_lost(drill: Drill) -> FaultRow:
    """Pull the second machine's cable in the middle of a run, and plug it in again."""
    if why := namespaces_are_forbidden():
        raise SkippedError(why)
    with two_machines() as (first, second):

        def pull(agent: Run) -> Callable[[], None]:
            ip("-n", second.name, "link", "set", "cable", "down")
            return lambda: ip("-n", second.name, "link", "set", "cable", "up")

        return _strike_second(drill, [first, second], pull)


@fault(f"an agent is killed, and started again after {OUTAGE_SECONDS:.0f} s", ranks=2)
def agent_is_lost(drill: Drill) -> FaultRow:
    """Kill the second agent with its rank, and start it again later, as a scheduler does."""
    here = [Machine("", "127.0.0.1"), Machine("", "127.0.0.1")]

    def kill(agent: Run) -> Callable[[], None]:
        agent.kill_all()
        return lambda: None

    return _strike_second(drill, here, kill)


def _strike_second(
    drill: Drill, machines: list[Machine], strike: Callable[[Run], Callable[[], None]]
) -> FaultRow:
    """Train on two machines, strike the second one, mend it, and judge what came of it.

    Args:
        drill: of the row.
        machines: the first is where agents meet.
        strike: given the second agent; returns what mends it.
    """
    port = free_port()
    with ExitStack() as runs:
        agents = [runs.enter_context(_start_agent(drill, machines, n, port)) for n in range(2)]
        first = agents[0]
        first.wait_for_step(FAULT_AFTER)
        said = [len(agent.said()) for agent in agents]
        mend = strike(agents[1])
        struck = first.strike()
        detected = None
        while struck.seconds() < OUTAGE_SECONDS:
            if detected is None and any(map(_has_noticed, agents, said)):
                detected = struck.seconds()
            time.sleep(0.1)
        mend()
        if agents[1].launcher.poll() is not None:
            agents[1] = runs.enter_context(_start_agent(drill, machines, 1, port))
        recovered = first.wait_for_recovery(struck)
        statuses = [agent.wait_for_end() for agent in agents]
        begun = first.starts()[-1]["step"]
        return drill.judge(
            first,
            struck,
            num_ranks=2,
            detected_s=detected,
            recovered_s=recovered,
            complaints=[
                f"the second agent ended with {statuses[1]}" if statuses[1] else "",
                "" if begun else "it did not go on from a checkpoint",
                "nobody said a word of it" if detected is None else "",
                *agents[1].left_behind(),
            ],
        )


def _has_noticed(agent: Run, since: int) -> bool:
    return agent.has_said(_NOTICED, since=since)


def _start_agent(drill: Drill, machines: list[Machine], number: int, port: int) -> Run:
    """Start the recipe for several machines on one of them."""
    machine, folder = machines[number], drill.output / "run"
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
    command = machine.command(
        str(ROOT / "launch/cluster/torchrun_nodes.sh"),
        *flags(2, data=drill.shards, output=folder),
    )
    return Run(command, folder, drill.output / f"agent-{number}.log", variables)


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


ROWS = [network_is_lost, agent_is_lost]
