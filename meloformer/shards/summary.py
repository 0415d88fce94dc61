"""What a shard folder holds, as a table for people."""

from collections.abc import Iterable, Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from meloformer.shards.longest import LongestOfFolder
from meloformer.shards.manifest import SPLITS, Manifest
from meloformer.shards.quantised_words import quantised_words


def summary_table(manifest: Manifest, *, title: str) -> Table:
    """Counts of a shard folder: what came in and where it went, each split, and near copies."""
    # Without upright lines, it holds the longest reason in eighty columns.
    table = Table(title=escape(title), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("", "pieces", "bars", "notes", "tokens", "shards", "MB"):
        table.add_column(
            name,
            justify="right" if name else "left",
            no_wrap=bool(name),
            overflow="fold",
        )
    several = len(manifest.inputs) > 1
    table.add_row("in", f"{manifest.num_in:,}", end_section=not several)
    for entry in manifest.inputs if several else ():
        table.add_row(f"  {escape(entry.name)}", f"{entry.files:,}")
    table.add_section()
    table.add_row("duplicates", f"{manifest.num_duplicates:,}")
    table.add_row("rejected", f"{manifest.num_rejected:,}", end_section=not manifest.rejected)
    for reason, count in sorted(manifest.rejected.items(), key=lambda item: (-item[1], item[0])):
        table.add_row(f"  {reason}", f"{count:,}")
    table.add_section()
    for split in SPLITS:
        note = "" if manifest.splits[split] else " (too few pieces)"
        table.add_row(split + note, *_counts(manifest, (split,)))
    table.add_section()
    table.add_row("pieces", *_counts(manifest, SPLITS), end_section=True)
    if manifest.settings.near_copy_threshold:
        table.add_row("near copies", f"{manifest.num_near_copies:,}")
        table.add_row("  in clusters", f"{manifest.num_clusters:,}")
    return table


def longest_table(longest: LongestOfFolder) -> Table:
    """The longest piece and bar, and how many pieces have bars that short rows cannot take."""
    table = Table(title="longest", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("")
    table.add_column("tokens", justify="right")
    for name in ("piece", "key", "source"):
        table.add_column(name, overflow="fold")
    for name, found in (("piece", longest.piece), ("bar, with its prefix", longest.bar)):
        place = (found.piece or f"in {found.shard}", found.key or "", escape(found.source or ""))
        table.add_row(name, f"{found.tokens:,}", *place)
    counts = longest.pieces_with_longer_bars
    if counts is not None:
        said = ", ".join(f"{count:,} over {limit:,}" for limit, count in counts.items())
        table.caption = (
            f"pieces with a bar of more tokens: {said}; training stops at a bar longer than "
            "--max_seq_len"
        )
        table.caption_justify = "left"
    return table


def quantised_table(manifest: Manifest) -> Table:
    """What the grid cost: the quantiser's counts over all files that became pieces or copies."""
    table = Table(title="quantised", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("")
    table.add_column("count", justify="right")
    table.add_column("what it counts", overflow="fold")
    for name, count in manifest.quantised.items():
        table.add_row(name, f"{count:,}", quantised_words(name))
    return table


def shards_table(manifest: Manifest, split: str) -> Table:
    """Shards of a split."""
    table = Table(title=split, title_justify="left")
    counts = ("pieces", "bars", "notes", "tokens", "longest_piece", "longest_bar", "bytes")
    for name in ("shard", *counts, "sha256"):
        table.add_column(
            name.replace("_", " "),
            justify="right" if name in counts else "left",
            overflow="fold",
        )
    for shard in manifest.splits[split]:
        numbers = (f"{getattr(shard, name):,}" for name in counts)
        table.add_row(shard.file, *numbers, shard.sha256[:12])
    return table


def pieces_table(pieces: Iterable[Mapping[str, Any]], *, title: str) -> Table:
    """Pieces of a shard, as look_up.pieces_of_shard gives them."""
    table = Table(title=escape(title), title_justify="left")
    for name in ("", "key", "tokens", "bars", "notes", "seconds"):
        table.add_column(name, justify="left" if name == "key" else "right", overflow="fold")
    for name in ("tempo", "metres", "key", "instruments", "near copy of", "source"):
        table.add_column(name, overflow="fold")
    for piece in pieces:
        facts = piece["facts"]
        cluster = facts.get("cluster")
        tempos = dict.fromkeys(f"{bpm:g}" for bpm in facts["tempo_bpm"])
        table.add_row(
            str(piece["number"]),
            piece["piece"],
            *(f"{facts[f'num_{what}']:,}" for what in ("tokens", "bars", "notes")),
            f"{facts['duration_seconds']:,.0f}",
            "-".join(tempos),
            " ".join(facts["metres"]),
            facts["key"] or "",
            " ".join(facts["instruments"]),
            "" if cluster in (None, piece["piece"]) else cluster,
            escape(facts["source"]),
        )
    return table


def _counts(manifest: Manifest, splits: tuple[str, ...]) -> list[str]:
    shards = [shard for split in splits for shard in manifest.splits[split]]
    return [
        f"{sum(shard.pieces for shard in shards):,}",
        f"{sum(shard.bars for shard in shards):,}",
        f"{sum(shard.notes for shard in shards):,}",
        f"{sum(shard.tokens for shard in shards):,}",
        f"{len(shards):,}",
        f"{sum(size for shard in shards for _, size, _ in shard.files()) / 1e6:,.1f}",
    ]
