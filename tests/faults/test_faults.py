"""The rows that take least; `make test-faults` plays all of them."""

import pytest

from tests.faults.damage import checkpoint_bit_is_flipped
from tests.faults.kills import kill_in_the_first_step, torchrun_brings_it_back
from tests.faults.memory import out_of_memory
from tests.faults.rows import Drill, Fault
from tests.faults.saves import kill_first_in_a_save


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(
    "fault",
    [
        checkpoint_bit_is_flipped,
        kill_first_in_a_save,
        kill_in_the_first_step,
        out_of_memory,
        torchrun_brings_it_back,
    ],
    ids=lambda fault: fault.name,
)
def test_a_run_bears_it_and_ends_with_the_undisturbed_losses(fault: Fault, drill: Drill) -> None:
    assert fault(drill).outcome == "PASS"
