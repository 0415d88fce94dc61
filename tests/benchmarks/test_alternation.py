"""Timing in turns: who is called how often, and what a failure leaves of the others."""

import torch

from meloformer.benchmarks.alternation import Candidate, Failure, Timing, time_in_turns

CPU = torch.device("cpu")


def test_candidates_take_turns_and_every_second_round_runs_backwards() -> None:
    calls: list[str] = []
    candidates = {name: Candidate(lambda name=name: calls.append(name)) for name in "abc"}
    found = time_in_turns(candidates, CPU, rounds=2)
    assert "".join(calls) == "aabbcc" + "abc" + "cba"
    assert all(isinstance(timing, Timing) and len(timing.seconds) == 2 for timing in found.values())


def test_a_candidate_that_fails_is_named_with_its_reason_and_the_others_are_timed() -> None:
    def fail() -> None:
        raise RuntimeError("No available kernel.\nAborting execution.")

    found = time_in_turns({"a": Candidate(fail), "b": Candidate(list)}, CPU, rounds=3)
    assert found["a"] == Failure("RuntimeError: No available kernel.")
    assert isinstance(found["b"], Timing) and len(found["b"].seconds) == 3


def test_median_and_spread_are_those_of_the_timed_calls() -> None:
    timing = Timing(seconds=(1.0, 4.0, 2.0), first_seconds=9.0, memory=None, graphs=0)
    assert timing.median == 2.0 and timing.spread == 1.5


def test_graphs_are_counted_for_the_candidate_that_compiles_them() -> None:
    compiled = torch.compile(lambda x: x + 1, backend="eager", dynamic=False)
    lengths = iter(range(2, 100))
    candidates = {
        "one": Candidate(lambda: compiled(torch.zeros(1))),
        "one a call": Candidate(lambda: compiled(torch.zeros(next(lengths)))),
        "none": Candidate(list),
    }
    torch._dynamo.reset()
    found = time_in_turns(candidates, CPU, rounds=1)
    graphs = {name: timing.graphs for name, timing in found.items() if isinstance(timing, Timing)}
    assert graphs == {"one": 1, "one a call": 3, "none": 0}
