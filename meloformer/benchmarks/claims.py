"""What MeloFormer claims: a row for each goal, with the command that measures it.

`launch/tools/proof.py` runs them.
"""

from collections.abc import Callable, Mapping
from typing import Any

from meloformer.benchmarks.music_claims import MUSIC
from meloformer.benchmarks.proof import SCRATCH, Claim, Command, Goal, ReadFigure, named
from meloformer.benchmarks.speed_claims import SPEED
from meloformer.evaluation.piece_edits import EDITS

_CORPORA = "../shared/corpora"
_PROOF_SHARDS = f"{SCRATCH}/shards"
_FEW, _MANY = 10_000, 1_000_000


# MIDI to shards.

_BENCH_DATA = Command(
    name="data",
    line=f"python launch/bench/data.py --midi {_CORPORA}/pop909.tar.gz --num_workers 1,2 "
    "--against miditok --json {figures}",
    needs=("corpora", "miditok", "music21"),
)
_BENCH_MEMORY = Command(
    name="memory",
    line=f"python launch/bench/data.py --simulate {_MANY} --json {{figures}}",
    needs=("music21",),
)


def _rates(found: Mapping[str, Any], what: str = "shard-data") -> dict[int, float]:
    return {
        rate["num_workers"]: rate["files_per_second_and_core"]
        for rate in found["rates"]
        if rate["what"] == what
    }


def _files_per_second(found: Mapping[str, Any]) -> tuple[float, str]:
    rates = _rates(found)
    told = ", ".join(f"{rate:,.0f} with {number}" for number, rate in rates.items())
    return min(rates.values()), f"per core, by workers: {told}"


def _times_miditok(found: Mapping[str, Any]) -> tuple[float, str]:
    ours, others = _rates(found), _rates(found, "MidiTok REMI")
    told = ", ".join(f"{rate:,.0f} with {number}" for number, rate in others.items())
    return min(ours[n] / others[n] for n in ours), f"MidiTok's files/s per core, by workers: {told}"


def _growth(found: Mapping[str, Any]) -> tuple[float, str]:
    rates = _rates(found)
    few, many = min(rates), max(rates)
    if few == many:
        raise ValueError("rates of one number of workers only")
    return rates[many] * many / (rates[few] * few), f"{many} workers beside {few}"


def _memory_growth(found: Mapping[str, Any]) -> tuple[float, str]:
    few, many = (found["memory"][str(n)]["megabytes"] for n in (_FEW, _MANY))
    return many - few, f"{few:,.0f} MB at {_FEW:,} pieces, {many:,.0f} MB at {_MANY:,}"


_DATA = (
    Claim(
        id="files-per-second",
        claim="raw POP909 files to written tars, chords and duplicates included, per core",
        command=_BENCH_DATA,
        figure=_files_per_second,
        unit="files/s/core",
        goal=Goal(">=", 500),
    ),
    Claim(
        id="files-growth",
        claim="the same grows with cores: two workers against one",
        command=_BENCH_DATA,
        figure=_growth,
        unit="times",
        goal=Goal(">", 1),
    ),
    Claim(
        id="files-against-miditok",
        claim="the same against MidiTok's REMI, tokens only, over the same files in the same run "
        "(goal: 500 files beside its 42)",
        command=_BENCH_DATA,
        figure=_times_miditok,
        unit="times",
        goal=Goal(">=", 11.9),
    ),
    Claim(
        id="build-memory",
        claim="memory of a build grows from 10^4 to 10^6 simulated pieces by no more than the "
        "search for near copies is given",
        command=_BENCH_MEMORY,
        figure=_memory_growth,
        unit="MB",
        goal=Goal("<=", 256),
    ),
)


# The stream.

_BENCH_STREAM = Command(
    name="stream",
    prepare=f"rm -rf {_PROOF_SHARDS} && python launch/shard_data.py --output "
    f"{_PROOF_SHARDS}/default && for corpus in {_CORPORA}/*.tar.gz; do python "
    f"launch/shard_data.py --midi $corpus --output {_PROOF_SHARDS}/$(basename $corpus .tar.gz) "
    "|| exit; done",
    line=f"python launch/bench/stream.py --data {_PROOF_SHARDS}/* --json {{figures}}",
    needs=("corpora", "music21"),
)
_BENCH_STREAM_SMALL = Command(
    name="stream-small",
    prepare=f"for corpus in easyrpg_rtp openmsx; do python launch/shard_data.py --overwrite "
    f"--midi {_CORPORA}/$corpus.tar.gz --output {_PROOF_SHARDS}-small/$corpus || exit; done",
    line=f"python launch/bench/stream.py --data {_PROOF_SHARDS}-small/* --batch_size 2 "
    "--global_batch 2 --json {figures}",
    needs=("corpora",),
)
_BENCH_RESUME = Command(
    name="resume",
    line=f"python launch/bench/stream.py --simulate {_MANY} --json {{figures}}",
)


def _worst_stream(
    mode: str, name: str, pick: Callable[..., Any]
) -> Callable[[Mapping[str, Any]], tuple[float, str]]:
    """The worst corpus, told by name, and those that have no such figure."""

    def read(found: Mapping[str, Any]) -> tuple[float, str]:
        rows = [row for row in found["stream"] if row["mode"] == mode]
        none = [row["data"] for row in rows if row[name] is None]
        value, data = pick((row[name], row["data"]) for row in rows if row[name] is not None)
        left_out = f"; no step but the last: {', '.join(none)}" if none else ""
        return value, f"{data}, the worst of {len(rows) - len(none)} corpora{left_out}"

    return read


def _padding(mode: str) -> ReadFigure:
    return _worst_stream(mode, "padding as computed, %", max)


def _first_batch(found: Mapping[str, Any]) -> tuple[float, str]:
    rows = [row for row in found["plan"] if row["pieces"] == _MANY]
    told = ", ".join(f"{row['first batch, s']} {row['mode']}" for row in rows)
    return max(row["first batch, s"] for row in rows), f"by the clock: {told}"


_STREAM = (
    Claim(
        id="stream-tokens",
        claim="packed stream without block plans, 8,192 tokens a row, per core, slowest corpus",
        command=_BENCH_STREAM,
        figure=_worst_stream("pack", "tokens per second", min),
        unit="tokens/s/core",
        goal=Goal(">=", 1_000_000),
    ),
    Claim(
        id="stream-tokens-plans",
        claim="the same with the block plans of `halves`",
        command=_BENCH_STREAM,
        figure=_worst_stream("pack", "with halves plans", min),
        unit="tokens/s/core",
        goal=Goal(">=", 300_000),
    ),
    *(
        Claim(
            id=f"padding-{mode}{suffix}",
            claim=f"padding in {mode} mode at 8,192, all steps but an epoch's last, {which}",
            command=command,
            figure=_padding(mode),
            unit="%",
            goal=Goal("<=", limit),
        )
        for suffix, which, command in (
            ("", "worst corpus", _BENCH_STREAM),
            ("-small", "worst of the corpora below one global batch", _BENCH_STREAM_SMALL),
        )
        for mode, limit in (("bucket", 5), ("pack", 2))
    ),
    Claim(
        id="first-batch",
        claim="first batch after a resume in mid-epoch, 10^6 simulated pieces",
        command=_BENCH_RESUME,
        figure=_first_batch,
        unit="s",
        goal=Goal("<", 2),
    ),
)


# Near copies.

_NEAR_COPIES = Command(
    name="near-copies",
    line=f"python launch/tools/near_copies_table.py --midi {_CORPORA}/*.tar.gz default "
    "--json {figures}",
    needs=("corpora", "music21"),
)


def _found_of(edit: str) -> ReadFigure:
    def read(found: Mapping[str, Any]) -> tuple[float, str]:
        cells = {name: edits[edit] for name, edits in found["found"].items() if edit in edits}
        shares = {name: cell["found"] / cell["copies"] for name, cell in cells.items()}
        worst = min(shares, key=shares.__getitem__)
        copies = sum(cell["copies"] for cell in cells.values())
        share = sum(cell["found"] for cell in cells.values()) / copies
        note = f"{copies:,} copies of {len(cells)} corpora; least: {worst}, {shares[worst]:.1%}"
        return 100 * share, note

    return read


def _wrong_clusters(found: Mapping[str, Any]) -> tuple[float, str]:
    wrong = sum(row["other_tune"] for row in found["clusters"].values())
    pieces = sum(row["pieces"] for row in found["clusters"].values())
    return 100 * wrong / pieces, f"{wrong} of {pieces:,} pieces"


_CLUSTERS = (
    *(
        Claim(
            id=f"near-copies-{edit.replace('5 % of ', '').replace(' ', '-')}",
            claim=f"near copies found, {edit}",
            command=_NEAR_COPIES,
            figure=_found_of(edit),
            unit="%",
            goal=Goal(">=", 90),
        )
        for edit in EDITS
    ),
    Claim(
        id="near-copies-wrong",
        claim="pieces in a cluster with another tune, after transitive closure",
        command=_NEAR_COPIES,
        figure=_wrong_clusters,
        unit="%",
        goal=Goal("<", 0.1),
    ),
)


# README's own claims, in a fresh clone, environment included.


def _fresh(target: str, arguments: str) -> Command:
    folder = f"{SCRATCH}/fresh-{target}"
    return Command(
        name=target,
        prepare=f"rm -rf {folder} && git clone --quiet . {folder}",
        line=f"make -C {folder} {target} ARGS={arguments}",
        is_long=True,
        is_promise=True,
    )


_DEMO = _fresh("demo", '"--json $PWD/{figures}"')


def _minutes(found: Mapping[str, Any]) -> tuple[float, str]:
    return found["command_seconds"] / 60, "environment included"


def _claim_of_demo(name: str, claim: str, unit: str, goal: Goal) -> Claim:
    return Claim(
        id=f"demo-{name.replace('_', '-')}",
        claim=f"`make demo`: {claim}",
        command=_DEMO,
        figure=named(name),
        unit=unit,
        goal=goal,
    )


_README = (
    Claim(
        id="demo-minutes",
        claim="`make demo` in a fresh clone, on 2 cores",
        command=_DEMO,
        figure=_minutes,
        unit="min",
        goal=Goal("<=", 10),
        readme="in {goal:.0f} minutes on 2 cores",
    ),
    _claim_of_demo("resume_difference", "losses after a kill, done twice", "nats", Goal("=", 0)),
    _claim_of_demo("valid_nats", "validation of tiny", "nats/token", Goal("<", 1.35)),
    _claim_of_demo("lead_over_ngram", "an n-gram on the same is worse by", "nats", Goal(">", 0.4)),
    _claim_of_demo("lead_of_summaries", "summaries zeroed is worse by", "nats", Goal(">", 0)),
    _claim_of_demo(
        "decoded_share", "generated pieces that two readers agree on", "%", Goal("=", 100)
    ),
    Claim(
        id="test-minutes",
        claim="`make test` in a fresh clone, on 2 cores",
        command=_fresh("test", '""'),
        figure=_minutes,
        unit="min",
        goal=Goal("<", 15),
        readme="in under {goal:.0f}",
    ),
)


CLAIMS = (*_DATA, *_STREAM, *_CLUSTERS, *SPEED, *_README, *MUSIC)
