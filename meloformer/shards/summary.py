"""What a shard folder holds, as a table for people."""

from rich.table import Table

from meloformer.shards.manifest import SPLITS, Manifest


def summary_table(manifest: Manifest, *, title: str) -> Table:
    """Counts of a shard folder: what came in and where it went, then each split."""
    table = Table(title=title, title_justify="left")
    for name in ("", "pieces", "bars", "notes", "tokens", "shards", "bytes"):
        table.add_column(name, justify="right" if name else "left")
    table.add_row("in", f"{manifest.num_in:,}", end_section=True)
    table.add_row("duplicates", f"{manifest.num_duplicates:,}")
    table.add_row("rejected", f"{manifest.num_rejected:,}", end_section=not manifest.rejected)
    for reason, count in sorted(manifest.rejected.items(), key=lambda item: (-item[1], item[0])):
        table.add_row(f"  {reason}", f"{count:,}")
    table.add_section()
    for split in SPLITS:
        note = "" if manifest.splits[split] else " (empty: too few pieces for its share)"
        table.add_row(split + note, *_counts(manifest, (split,)))
    table.add_section()
    table.add_row("pieces", *_counts(manifest, SPLITS))
    return table


def quantised_table(manifest: Manifest) -> Table:
    """What the grid cost: the quantiser's counts over all files that became pieces or copies."""
    table = Table(title="quantised", title_justify="left")
    table.add_column("")
    table.add_column("count", justify="right")
    for name, count in manifest.quantised.items():
        table.add_row(name, f"{count:,}")
    return table


def _counts(manifest: Manifest, splits: tuple[str, ...]) -> list[str]:
    shards = [shard for split in splits for shard in manifest.splits[split]]
    return [
        f"{sum(shard.pieces for shard in shards):,}",
        f"{sum(shard.bars for shard in shards):,}",
        f"{sum(shard.notes for shard in shards):,}",
        f"{sum(shard.tokens for shard in shards):,}",
        f"{len(shards):,}",
        f"{sum(shard.bytes + shard.index_bytes for shard in shards):,}",
    ]
