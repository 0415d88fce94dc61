"""Random canonical pieces, and plain-loop readings of tokens to judge the vectorised ones by."""

import bisect
from typing import Any

import numpy as np
from hypothesis import strategies as st

from meloformer.midi.grid import (
    DURATION_STEPS,
    METRE_STEPS,
    METRES,
    NUM_INSTRUMENTS,
    TEMPOS_BPM,
    VELOCITIES,
)
from meloformer.midi.quantised import QuantisedPiece
from meloformer.tokens.grammar import GrammarState
from meloformer.tokens.vocabulary import VOCAB_SIZE, Kind, token, token_name
from meloformer.tokens.wishes import Wishes

_ID_OF = {token_name(token_id): token_id for token_id in range(VOCAB_SIZE)}

# (bar, instrument, onset_steps, pitch, duration_steps, velocity)
Note = tuple[int, int, int, int, int, int]


def piece_of(bar_metre: list[int], bar_tempo: list[int], notes: list[Note]) -> QuantisedPiece:
    """A piece with its notes sorted, doubles removed and overlaps cut, note by note."""
    quadruples = {note[:4]: note for note in reversed(notes)}
    notes = [quadruples[key] for key in sorted(quadruples)]
    bar_start = [0]
    for metre in bar_metre:
        bar_start.append(bar_start[-1] + int(METRE_STEPS[metre]))

    cut = []
    for note in notes:
        start = bar_start[note[0]] + note[2]
        later = [
            bar_start[other[0]] + other[2]
            for other in notes
            if other[1] == note[1] and other[3] == note[3]
        ]
        gap = min((onset - start for onset in later if onset > start), default=None)
        duration = note[4]
        if gap is not None and duration > gap:
            table = DURATION_STEPS.tolist()
            duration = table[bisect.bisect_right(table, gap) - 1]
        cut.append((*note[:4], duration, note[5]))
    columns = np.array(cut, dtype=np.int32).reshape(-1, 6).T
    return QuantisedPiece(
        bar_metre=np.array(bar_metre, dtype=np.int32),
        bar_tempo=np.array(bar_tempo, dtype=np.int32),
        bar=columns[0],
        instrument=columns[1],
        onset_steps=columns[2],
        pitch=columns[3],
        duration_steps=columns[4],
        velocity=columns[5],
    )


def random_piece(
    seed: int, num_bars: int, num_notes: int, pitches: tuple[int, int] = (0, 127)
) -> QuantisedPiece:
    """A canonical piece: metres and tempos that change, empty bars, long and cut notes.

    Few values, so that they repeat; taken from the whole tables, so that the ends are met.
    """
    generator = np.random.default_rng(seed)

    def some(table_size: int, count: int = 3) -> list[int]:
        return generator.integers(0, table_size, generator.integers(1, count + 1)).tolist()

    def pick(values: list[int]) -> int:
        return values[generator.integers(len(values))]

    metres, tempos = some(len(METRES)), some(len(TEMPOS_BPM))
    instruments, durations = some(NUM_INSTRUMENTS), some(len(DURATION_STEPS))
    velocities = some(len(VELOCITIES))
    few_pitches = [pitches[0] + shift for shift in some(pitches[1] - pitches[0] + 1, count=4)]

    bar_metre = [pick(metres) for _ in range(num_bars)]
    bar_tempo = [pick(tempos) for _ in range(num_bars)]
    notes = []
    for index in range(num_notes):
        bar = num_bars - 1 if index == 0 else int(generator.integers(num_bars))
        last_step = int(METRE_STEPS[bar_metre[bar]]) - 1
        onset = pick([0, last_step, int(generator.integers(last_step + 1))])
        duration = int(DURATION_STEPS[pick(durations)])
        velocity = int(VELOCITIES[pick(velocities)])
        notes.append((bar, pick(instruments), onset, pick(few_pitches), duration, velocity))
    return piece_of(bar_metre, bar_tempo, notes)


def quantised_pieces(
    max_bars: int = 6, max_notes: int = 25, pitches: tuple[int, int] = (0, 127)
) -> st.SearchStrategy[QuantisedPiece]:
    """Canonical pieces from a seed; the sizes are hypothesis' own, so that they shrink."""
    return st.builds(
        random_piece,
        st.integers(0, 2**32),
        st.integers(1, max_bars),
        st.integers(1, max_notes),
        st.just(pitches),
    )


def ids_of(names: str) -> np.ndarray:
    """Ids of readable tokens, separated by spaces; `_` stands for the space inside a key's name."""
    ids = [_ID_OF[name.replace("_", " ")] for name in names.split()]
    return np.array(ids, dtype=np.uint16)


def read_plainly(ids: np.ndarray) -> QuantisedPiece:
    """What `decode` must say of a correct sequence, one token after the other."""
    bar_metre: list[int] = []
    bar_tempo: list[int] = []
    notes: list[list[int]] = []
    state: dict[Kind, int] = {}
    for kind, index in ((t.kind, t.index) for t in map(token, ids.tolist())):
        if kind is Kind.BAR:
            bar_metre.append(bar_metre[-1] if bar_metre else -1)
            bar_tempo.append(bar_tempo[-1] if bar_tempo else -1)
        elif not bar_metre:
            continue
        elif kind is Kind.METRE:
            bar_metre[-1] = index
        elif kind is Kind.TEMPO:
            bar_tempo[-1] = index
        elif kind is Kind.PITCH:
            bar, instrument, onset = len(bar_metre) - 1, state[Kind.INSTRUMENT], state[Kind.ONSET]
            duration, velocity = state.get(Kind.DURATION, -1), state.get(Kind.VELOCITY, -1)
            notes.append([bar, instrument, onset, index, duration, velocity])
        elif kind is Kind.DURATION:
            notes[-1][4] = int(DURATION_STEPS[index])
            state[kind] = notes[-1][4]
        elif kind is Kind.VELOCITY:
            notes[-1][5] = int(VELOCITIES[index])
            state[kind] = notes[-1][5]
        else:
            state[kind] = index
    return piece_of(bar_metre, bar_tempo, [tuple(note) for note in notes])  # type: ignore[misc]


def label_plainly(ids: np.ndarray) -> dict[str, list[int]]:
    """What `token_labels` must say, one token after the other."""
    labels: dict[str, list[int]] = {n: [] for n in ("kind", "bar", "instrument", "onset", "index")}
    bar, instrument, onset, index = -1, -1, 0, -1
    for token_id in ids.tolist():
        kind, value = token(token_id).kind, token(token_id).index
        index += 1
        if kind is Kind.BAR:
            bar, instrument, onset, index = bar + 1, 0, 0, 0
        elif bar >= 0 and kind is Kind.CONTROL:
            instrument, onset = 0, 0
        elif bar >= 0 and kind is Kind.INSTRUMENT:
            instrument, onset = 1 + value, 0
        elif kind is Kind.ONSET:
            onset = value
        row = {"kind": kind, "bar": bar, "instrument": instrument, "onset": onset, "index": index}
        for name, values in labels.items():
            values.append(int(row[name]))
    return labels


def encode_bars_plainly(quantised: QuantisedPiece) -> list[tuple[Kind, int]]:
    """Kinds and indices of the bars' tokens, note after note; chords left at 0."""
    q = quantised
    tokens: list[tuple[Kind, int]] = []
    metre = tempo = -1
    for bar in range(q.num_bars):
        tokens.append((Kind.BAR, 0))
        if q.bar_metre[bar] != metre:
            metre = int(q.bar_metre[bar])
            tokens.append((Kind.METRE, metre))
        if q.bar_tempo[bar] != tempo:
            tempo = int(q.bar_tempo[bar])
            tokens.append((Kind.TEMPO, tempo))
        instrument = onset = duration = velocity = -1
        for note in np.flatnonzero(q.bar == bar).tolist():
            if q.instrument[note] != instrument:
                instrument = int(q.instrument[note])
                tokens.append((Kind.INSTRUMENT, instrument))
                onset = duration = velocity = -1
            if q.onset_steps[note] != onset:
                onset = int(q.onset_steps[note])
                tokens.append((Kind.ONSET, onset))
            tokens.append((Kind.PITCH, int(q.pitch[note])))
            if q.duration_steps[note] != duration:
                duration = int(q.duration_steps[note])
                tokens.append((Kind.DURATION, DURATION_STEPS.tolist().index(duration)))
            if q.velocity[note] != velocity:
                velocity = int(q.velocity[note])
                tokens.append((Kind.VELOCITY, VELOCITIES.tolist().index(velocity)))
    return tokens


def random_walk(seed: int, **wishes: Any) -> np.ndarray:
    """Uniformly random allowed tokens from the first one to EOS."""
    generator = np.random.default_rng(seed)
    state = GrammarState(wishes=Wishes(**wishes))
    ids = []
    while not state.is_finished:
        allowed = np.flatnonzero(state.allowed())
        ids.append(int(allowed[generator.integers(len(allowed))]))
        state.advance(ids[-1])
    return np.array(ids, dtype=np.uint16)


def notes_of_bars(quantised: QuantisedPiece, first: int, last: int) -> QuantisedPiece:
    """Bars first..last - 1 alone."""
    inside = (quantised.bar >= first) & (quantised.bar < last)
    return QuantisedPiece(
        bar_metre=quantised.bar_metre[first:last],
        bar_tempo=quantised.bar_tempo[first:last],
        bar=quantised.bar[inside] - first,
        instrument=quantised.instrument[inside],
        onset_steps=quantised.onset_steps[inside],
        pitch=quantised.pitch[inside],
        duration_steps=quantised.duration_steps[inside],
        velocity=quantised.velocity[inside],
    )
