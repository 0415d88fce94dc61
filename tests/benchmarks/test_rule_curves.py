"""Learning curves beside each other: equal steps, equal seconds, who wins and how surely."""

import json

import pytest

from meloformer.benchmarks.rule_curves import EMPTY_CURVE, Comparison, Curve


def curve(seconds_of_step: float, *nats: float) -> Curve:
    """Validated every 10 steps."""
    made = EMPTY_CURVE
    for number, value in enumerate(nats):
        made = made.after(10 * number, 10 * number * seconds_of_step, value)
    return made


# The slow one learns more a step and less a second.
QUICK = (curve(1.0, 10, 8, 7), curve(1.0, 10, 8.2, 7.4))
SLOW = (curve(2.0, 10, 7, 5), curve(2.0, 10, 7.2, 5.2))


def a_comparison(**curves: tuple[Curve, ...]) -> Comparison:
    return Comparison(curves=curves, targets=(200, 400))


def test_between_validations_a_curve_is_a_straight_line() -> None:
    assert SLOW[0].at_step(5) == SLOW[0].at_seconds(10) == 8.5
    assert SLOW[0].at_seconds(20) == 7


def test_equal_seconds_are_those_of_the_fastest_so_that_no_curve_is_prolonged() -> None:
    found = a_comparison(quick=QUICK, slow=SLOW)
    assert found.num_steps == 20 and found.equal_seconds == 20
    slow, quick = found.standings()
    assert (slow.name, quick.name) == ("slow", "quick")
    assert slow.at_equal_steps.mean == pytest.approx(5.1)
    assert slow.at_equal_seconds.mean == pytest.approx(7.1)
    assert quick.at_equal_seconds.mean == pytest.approx(7.2)
    assert slow.steps_at_equal_seconds == 10 and quick.steps_at_equal_seconds == 20
    assert quick.tokens_per_second == pytest.approx((200 / 20 + 400 / 20) / 2)
    assert slow.tokens_per_second == pytest.approx((200 / 40 + 400 / 40) / 2)


def test_differences_are_taken_seed_by_seed() -> None:
    """Seeds differ by 2 nats, candidates by 0.5 in each: that spread is no doubt about the rule."""
    better, worse = (curve(1, 10, 5), curve(1, 10, 7)), (curve(1, 10, 5.5), curve(1, 10, 7.5))
    first, second = a_comparison(worse=worse, better=better).standings()
    assert first.name == "better" and first.behind.mean == first.behind.spread == 0
    assert second.behind.mean == pytest.approx(0.5)
    assert second.behind.spread == pytest.approx(0)
    assert second.at_equal_seconds.spread == pytest.approx(2**0.5)


def test_the_verdict_names_the_winner_and_how_sure_it_is() -> None:
    better, worse = (curve(1, 10, 5), curve(1, 10, 7)), (curve(1, 10, 5.5), curve(1, 10, 7.5))
    both = a_comparison(better=better, worse=worse)
    assert both.verdict("better").endswith("it is the default")
    assert "worse, is 0.500 ± 0.000 behind (more than twice the spread" in both.verdict("worse")
    close = a_comparison(better=better, worse=(curve(1, 10, 5.5), curve(1, 10, 6.9)))
    assert "(less than twice the spread" in close.verdict("worse")
    assert "halves, was not among them" in both.verdict("halves")
    # What is no rule cannot become the default.
    with_reference = both.verdict("worse", references=["better"])
    assert with_reference.startswith("at equal seconds worse wins")
    assert "; better, no rule, is ahead" in with_reference
    assert "ahead" not in both.verdict("better", references=["worse"])
    alone = Comparison(curves={"a": better[:1], "b": worse[:1]}, targets=(200,))
    assert "b, is 0.500 behind (one seed: no spread)" in alone.verdict("b")


def test_figures_are_plain_data() -> None:
    found = a_comparison(quick=QUICK, slow=SLOW)
    figures = json.loads(json.dumps(found.to_json()))
    assert figures["curves"]["slow"][1]["nats_per_note"] == [10, 7.2, 5.2]
    assert figures["standings"][0]["name"] == "slow"
