from pathlib import Path
from typing import Any, cast

import pytest

from meloformer.benchmarks.checkpoint_bench import WAYS, Way, figures_of
from meloformer.training.background import SaveOutcome


def test_a_save_costs_what_a_turn_takes_longer_than_its_neighbour_without_one(
    tmp_path: Path,
) -> None:
    ways = {"off": Way(None, seconds=[10.0, 20.0, 10.0])}
    for name, longer in zip(WAYS[1:], (0.1, 0.5), strict=True):
        sealed = tmp_path / name.replace(" ", "_") / "checkpoints" / "step-3"
        sealed.mkdir(parents=True)
        (sealed / "part").write_bytes(bytes(2_000_000))
        ways[name] = Way(
            cast("Any", object()),
            seconds=[10 + longer, 20 + longer, 10 + longer],
            held=[0.1, 0.2, 0.3],
            outcomes=[SaveOutcome(step=3, folder="", error="", seconds=4.0)],
        )
    found = figures_of(ways, tmp_path, steps=10)
    assert found["off"] == {"seconds": 10.0}
    beside = found["background"]
    assert beside["longer"] == pytest.approx(0.1)
    assert beside["share"] == pytest.approx(0.1 / 200), "a step takes a second"
    assert (beside["held"], beside["sealed"], beside["megabytes"]) == (0.2, 4.0, 2.0)
    assert found["between steps"]["longer"] == pytest.approx(0.5)
    assert not list(tmp_path.glob("*/checkpoints")), "nothing is left on the disk"
