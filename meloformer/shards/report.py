"""A report on a corpus: an HTML page with plots, and a Parquet file with a row for each piece."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from meloformer.errors import ConfigError

REPORT_NAME = "report.html"
PIECES_NAME = "pieces.parquet"


def write_report(
    folder: Path,
    pieces: Iterable[Mapping[str, Any]],
    rejected: Mapping[str, int],
    num_duplicates: int,
    *,
    title: str,
) -> None:
    """Write report.html and pieces.parquet; pieces are drawn once and none is kept.

    Args:
        folder: takes both; made where it is missing.
        pieces: facts as they lie in a tar, with `split`, `cluster` and `piece` (the key) where they
            are known.
        rejected: files by reason.
        num_duplicates: exact copies left out.
        title: what was read.

    Raises:
        ConfigError: pyarrow is not installed.
    """
    try:
        from meloformer.shards.piece_statistics import PieceStatistics
        from meloformer.shards.piece_table import cluster_sizes, parquet_writer, row_groups
        from meloformer.shards.report_page import report_page
    except ImportError as error:
        raise ConfigError(
            f"--report needs the extra `shards` ({error}); install it with "
            "`pip install 'meloformer[shards]'`"
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    statistics = PieceStatistics()
    with parquet_writer(folder / PIECES_NAME) as writer:
        for table in row_groups(pieces):
            writer.write_table(table)
            statistics.add(table)
    page = report_page(
        statistics, rejected, num_duplicates, cluster_sizes(folder / PIECES_NAME), title=title
    )
    (folder / REPORT_NAME).write_text(page, encoding="utf-8")
