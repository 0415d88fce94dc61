import numpy as np

from meloformer.generation.controls import ControlConfig
from meloformer.generation.generate import Sample, generate
from meloformer.generation.sampling import SamplingConfig
from meloformer.generation.streaming import stream_bars
from meloformer.model.museformer import MuseFormer
from meloformer.tokens.hid import decode_bar

CONTROLS = ControlConfig(bars=3, tempo=90, time_signature="3/4", instruments=("drums", "40"))


def test_every_bar_is_handed_out_once_in_order_and_is_that_of_the_piece(base: MuseFormer) -> None:
    bars = []
    sample = Sample(controls=CONTROLS, seed=4)
    ids = stream_bars(base, sample, SamplingConfig(), lambda *bar: bars.append(bar))
    [expected] = generate(base, CONTROLS, SamplingConfig(), seed=4)
    assert np.array_equal(ids, expected)
    assert [number for number, _ in bars] == [0, 1, 2]
    assert all(music == decode_bar(ids, number) for number, music in bars)
    assert sum(music.num_notes for _, music in bars) > 0


def test_a_bar_is_handed_out_before_the_next_one_is_written(base: MuseFormer) -> None:
    log: list[tuple[str, int]] = []

    def stop(num_tokens: int) -> bool:
        log.append(("token", num_tokens))
        return False

    sample = Sample(controls=CONTROLS, seed=4)
    ids = stream_bars(
        base, sample, SamplingConfig(), lambda bar, _: log.append(("bar", bar)), stop=stop
    )
    at = [log[log.index(("bar", bar)) + 1 :][:1] for bar in range(3)]
    prefix = len(CONTROLS.prefix())
    # The token that begins the next bar, or ends the piece, ends a bar.
    starts = [int(i) for i in np.flatnonzero((ids >= 4) & (ids < 89))] + [len(ids) - 1]
    counts = [start - prefix + 1 for start in starts[1:]]
    assert [[("token", count)] for count in counts[:2]] == at[:2]


def test_a_stopped_piece_has_the_bars_that_were_handed_out(base: MuseFormer) -> None:
    bars = []
    sample = Sample(controls=CONTROLS, seed=4)
    ids = stream_bars(
        base, sample, SamplingConfig(), lambda *bar: bars.append(bar), stop=lambda _: bool(bars)
    )
    assert len(bars) == 1
    assert decode_bar(ids, 0) == bars[0][1]
