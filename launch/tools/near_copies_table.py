"""Say how many purpose-made near copies are found, and which pieces are taken for one another.

    python launch/tools/near_copies_table.py
    python launch/tools/near_copies_table.py --midi ../shared/corpora/*.tar.gz default --pieces 100
    python launch/tools/near_copies_table.py --midi my_midi/ --near_copy_threshold 0.25

An input is what `launch/shard_data.py --midi` takes. Some pieces of each are edited as people edit
files; all pieces and all edited ones go through the signatures, the search and the closure that a
build uses, together. The first table says how many edited pieces are found, the second which pieces
share a cluster though nobody edited them: whether they are one tune is judged apart, by laying
their notes over each other.
"""

import json
import sys
import tempfile
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from meloformer.command_line import run_recipe
from meloformer.errors import ConfigError, MidiError
from meloformer.evaluation.piece_edits import EDITS
from meloformer.evaluation.tune_overlap import ONE_TUNE, tune_overlap
from meloformer.midi.piece import Piece
from meloformer.midi.quantise import quantise
from meloformer.midi.read import read_midi
from meloformer.shards.clusters import UnionFind
from meloformer.shards.content import note_key, tune_hash
from meloformer.shards.fingerprints import signature
from meloformer.shards.manifest import ShardSettings
from meloformer.shards.near_copies import find_pairs
from meloformer.shards.sources import open_source

_CELL = ("found", "copies")
_WIDTH_OF_A_FILE = 200


@dataclass(frozen=True, kw_only=True)
class NearCopiesTableConfig:
    """Flags of launch/tools/near_copies_table.py."""

    midi: tuple[str, ...] = ("default",)
    """Folders, archives, list files, `default`."""
    pieces: int = 100
    """Pieces of each input to edit, evenly spread; all of them are read."""
    random_pairs: int = 200
    """Pairs of each input to judge for comparison."""
    near_copy_threshold: float = ShardSettings().near_copy_threshold
    """Least share of melodic figures in common, as a build takes it."""
    seed: int = 0
    """What the edits draw from."""
    json: Path | None = None
    """Write the figures to this file too."""

    def __post_init__(self) -> None:
        if self.pieces < 1:
            raise ConfigError(f"--pieces {self.pieces}: allowed 1 or more")
        if self.random_pairs < 0:
            raise ConfigError(f"--random_pairs {self.random_pairs}: allowed 0 or more")
        if not 0.0 < self.near_copy_threshold < 1.0:
            raise ConfigError(
                f"--near_copy_threshold {self.near_copy_threshold}: allowed above 0 and under 1"
            )


@dataclass
class Corpora:
    """Everything that was read, and the copies made of it.

    Args:
        names: of each piece, its corpus and file.
        pieces: exact note copies left out.
        tunes: of each piece.
        keys: hashes of the pieces' notes.
        num_files: read, by corpus, those that became no piece too.
        rows: signatures, of pieces and copies alike.
        piece_of_row: which piece a signature comes from.
        edit_of_row: the edit, "" for the piece itself.
    """

    names: list[tuple[str, str]] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
    tunes: list[int] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    num_files: Counter[str] = field(default_factory=Counter)
    rows: list[np.ndarray] = field(default_factory=list)
    piece_of_row: list[int] = field(default_factory=list)
    edit_of_row: list[str] = field(default_factory=list)

    def of(self, corpus: str) -> list[int]:
        return [number for number, (name, _) in enumerate(self.names) if name == corpus]

    def add_row(self, number: int, edit: str, piece: Piece) -> None:
        self.rows.append(signature(piece))
        self.piece_of_row.append(number)
        self.edit_of_row.append(edit)


def near_copies_table(config: NearCopiesTableConfig) -> int:
    random = np.random.default_rng(config.seed)
    corpora = Corpora()
    for midi in config.midi:
        read_corpus(midi, corpora)
    names = list(dict.fromkeys(name for name, _ in corpora.names))
    for name in names:
        mine = corpora.of(name)
        chosen = np.linspace(0, len(mine) - 1, min(config.pieces, len(mine))).astype(int)
        for number in track(
            [mine[n] for n in chosen], f"edit {name}", console=Console(stderr=True)
        ):
            for edit, apply in EDITS.items():
                if (copy := apply(corpora.pieces[number], random)) is not None:
                    corpora.add_row(number, edit, copy)
    labels, joined = cluster(corpora, config.near_copy_threshold)
    found = found_copies(corpora, names, labels)
    clusters, doubtful = judged_clusters(corpora, names, joined, config.random_pairs, random)
    # Where nobody looks on, lines are not to be broken.
    console = Console(width=None if sys.stdout.isatty() else _WIDTH_OF_A_FILE)
    console.print(found_table(found, config.near_copy_threshold))
    console.print()
    console.print(clusters_table(clusters))
    for overlap, one, other in doubtful:
        line = f"other tunes in one cluster: {one} and {other} have {overlap:.0%} in common"
        console.print(line, markup=False, highlight=False)
    if config.json:
        figures = {"found": found, "clusters": clusters}
        config.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


def read_corpus(midi: str, corpora: Corpora) -> None:
    """Read one input; a file that cannot be read or repeats another is passed over."""
    source = open_source(midi)
    corpus = source.name.split(".")[0]
    for file in track(source.files(), f"read {corpus}", console=Console(stderr=True)):
        corpora.num_files[corpus] += 1
        try:
            piece = read_midi(file.read())
            quantised = quantise(piece)
        except MidiError:
            continue
        if (key := note_key(quantised)) not in corpora.keys:
            corpora.keys.add(key)
            corpora.add_row(len(corpora.pieces), "", piece)
            corpora.pieces.append(piece)
            corpora.tunes.append(tune_hash(quantised))
            corpora.names.append((corpus, file.name))


def cluster(corpora: Corpora, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Cluster of each row, and the pairs of pieces that were joined."""
    clusters = UnionFind(len(corpora.rows))
    found = [np.zeros((0, 2), np.int64)]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "signatures")
        file.write_bytes(np.stack(corpora.rows).astype("<u4").tobytes())
        for pairs in find_pairs(file, len(corpora.rows), Path(folder), threshold=threshold):
            clusters.add(pairs)
            found.append(pairs)
    of_pieces = np.sort(np.array(corpora.piece_of_row)[np.concatenate(found)], axis=1)
    of_pieces = np.unique(of_pieces[of_pieces[:, 0] != of_pieces[:, 1]], axis=0)
    return clusters.labels(), of_pieces


def found_copies(
    corpora: Corpora, names: list[str], labels: np.ndarray
) -> dict[str, dict[str, dict[str, int]]]:
    """Of each corpus and edit: copies made, and those that are in their original's cluster."""
    of_piece = dict(zip(corpora.piece_of_row, labels.tolist(), strict=True))
    for row, edit in enumerate(corpora.edit_of_row):
        if not edit:
            of_piece[corpora.piece_of_row[row]] = int(labels[row])
    is_found = defaultdict(list)
    for row, edit in enumerate(corpora.edit_of_row):
        piece = corpora.piece_of_row[row]
        if edit:
            is_found[corpora.names[piece][0], edit].append(labels[row] == of_piece[piece])
    return {
        name: {
            edit: {"found": int(sum(cell)), "copies": len(cell)}
            for edit in EDITS
            if (cell := is_found[name, edit])
        }
        for name in names
    }


def found_table(found: dict[str, dict[str, dict[str, int]]], threshold: float) -> Table:
    """How many edited pieces were found, by corpus and kind of edit."""
    table = Table(
        title="Edited pieces that are found",
        title_justify="left",
        caption="found: the edited piece stands in one cluster with the piece that it was made "
        f"from, at --near_copy_threshold {threshold:g}",
        caption_justify="left",
    )
    table.add_column("corpus")
    table.add_column("kind of edit")
    for name in ("pieces edited", "found", "found, %"):
        table.add_column(name, justify="right")
    sums = {
        edit: {what: sum(of[edit][what] for of in found.values() if edit in of) for what in _CELL}
        for edit in EDITS
    }
    for name, edits in [*found.items(), *([("all", sums)] if len(found) > 1 else [])]:
        cells = {edit: cell for edit, cell in edits.items() if cell["copies"]}
        for place, (edit, cell) in enumerate(cells.items()):
            share = f"{100 * cell['found'] / cell['copies']:.1f}"
            numbers = (f"{cell['copies']:,}", f"{cell['found']:,}", share)
            table.add_row("" if place else escape(name), edit, *numbers)
        table.add_section()
    return table


def judged_clusters(
    corpora: Corpora,
    names: list[str],
    joined: np.ndarray,
    num_random: int,
    random: np.random.Generator,
) -> tuple[dict[str, dict[str, Any]], list[tuple[float, str, str]]]:
    """Pieces that share a cluster with another piece, and whether the notes bear that out.

    Returns:
        Counts by corpus; and (share in common, names of both) of pairs whose notes do not.
    """
    pieces = corpora.pieces
    versions = UnionFind(len(pieces))
    doubtful = []
    for first, second in track(joined.tolist(), "compare notes", console=Console(stderr=True)):
        overlap = tune_overlap(pieces[first], pieces[second])
        if overlap >= ONE_TUNE or corpora.tunes[first] == corpora.tunes[second]:
            versions.add(np.array([[first, second]]))
        else:
            doubtful.append((overlap, first, second))
    clusters = UnionFind(len(pieces))
    clusters.add(joined)
    # Copies tie their originals together too; `joined` holds those pairs, told as originals.
    cluster_of, version_of = clusters.labels(), versions.labels()
    members = np.bincount(cluster_of, minlength=len(pieces))
    versions_in = np.zeros(len(pieces), int)
    np.add.at(versions_in, cluster_of[np.unique(version_of)], 1)
    rows: dict[str, dict[str, Any]] = {}
    for name in names:
        mine = np.array(corpora.of(name))
        shares = members[cluster_of[mine]] > 1
        is_mixed = versions_in[cluster_of[mine]] > 1
        drawn = [random.choice(mine, 2, replace=False) for _ in range(num_random * (len(mine) > 1))]
        alike = [tune_overlap(pieces[a], pieces[b]) >= ONE_TUNE for a, b in drawn]
        rows[name] = {
            "files": corpora.num_files[name],
            "pieces": len(mine),
            "share_a_cluster": int(shares.sum()),
            "one_tune": int((shares & ~is_mixed).sum()),
            "other_tune": int(is_mixed.sum()),
            "largest": int(members[cluster_of[mine]].max()),
            "random_pairs_alike": float(np.mean(alike)) if alike else None,
        }
    named = [
        (overlap, " ".join(corpora.names[first]), " ".join(corpora.names[second]))
        for overlap, first, second in sorted(doubtful)
    ]
    return rows, named


def clusters_table(rows: dict[str, dict[str, Any]]) -> Table:
    """Pieces that share a cluster, by what they share it with."""
    table = Table(
        title="Pieces in one cluster though nobody edited them",
        title_justify="left",
        caption=f"one tune: the notes of a passage coincide to {ONE_TUNE:.0%} or more, in any key "
        "and at any tempo; how often that is chance, the random pairs of other pieces say",
        caption_justify="left",
    )
    table.add_column("corpus")
    for name in (
        *("files", "pieces", "in a cluster", "with the same tune alone", "with another tune"),
        *("with another tune, %", "largest cluster", "random pairs taken for one tune, %"),
    ):
        table.add_column(name, justify="right")
    for name, row in rows.items():
        alike = row["random_pairs_alike"]
        counts = ("files", "pieces", "share_a_cluster", "one_tune", "other_tune")
        table.add_row(
            escape(name),
            *(f"{row[count]:,}" for count in counts),
            f"{100 * row['other_tune'] / row['pieces']:.2f}",
            f"{row['largest']:,}",
            "-" if alike is None else f"{100 * alike:.1f}",
        )
    return table


if __name__ == "__main__":
    run_recipe(near_copies_table, NearCopiesTableConfig)
