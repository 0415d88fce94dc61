import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meloformer.shards.bar_tokens import longest_bar
from meloformer.shards.piece_statistics import Histogram, PieceStatistics
from meloformer.shards.piece_table import QUANTISED, ROWS_PER_GROUP, cluster_sizes, row_groups
from meloformer.shards.quantised_words import quantised_words
from meloformer.shards.report import write_report
from meloformer.shards.report_charts import log_histogram
from meloformer.shards.verify_shard import read_tar
from meloformer.tokens.windows import bar_starts

REJECTED = {"no_notes": 3, "<script>": 1}


@pytest.fixture(scope="module")
def pieces(chorale_shards: Path) -> list[dict[str, Any]]:
    """Facts of real pieces, as the build hands them over."""
    return [
        plain.facts
        | {
            "split": tar.parent.name,
            "piece": plain.key,
            "longest_bar": longest_bar(bar_starts(plain.ids)),
        }
        for tar in sorted(chorale_shards.rglob("*.tar"))
        for plain in read_tar(tar)
    ]


@pytest.fixture(scope="module")
def report(pieces: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "new"
    write_report(folder, iter(pieces), REJECTED, 2, title="Bach & <Co>")
    return folder


def body_of(page: str) -> ET.Element:
    """The page's body, parsed strictly."""
    return ET.fromstring(page[page.index("<body>") : page.index("</body>") + len("</body>")])


def test_the_page_needs_nothing_but_itself(report: Path) -> None:
    page = (report / "report.html").read_text()
    assert not re.search(r"https?:|src=|href=|<script|@import|url\(", page)
    assert len(page) < 200_000


def test_the_page_is_well_formed_and_holds_every_drawing(report: Path) -> None:
    body = body_of((report / "report.html").read_text())
    headings = [element.text for element in body.iter("h2")]
    assert headings[:5] == ["Files", "Length", "Coverage", "Music", "Copies"]
    assert len(list(body.iter("svg"))) == 10
    assert [element.text for element in body.iter("h1")] == ["Bach & <Co>"]


def test_the_page_says_where_every_file_went(report: Path, pieces: list[dict[str, Any]]) -> None:
    text = " ".join("".join(body_of((report / "report.html").read_text()).itertext()).split())
    num = len(pieces)
    assert f"{num + 6} files in = {num} pieces + 2 duplicates + 4 rejected" in text
    assert "no_notes3" in text
    assert "<script>1" in text


def test_the_longest_piece_and_bar_are_named_with_key_and_source(
    report: Path, pieces: list[dict[str, Any]]
) -> None:
    body = body_of((report / "report.html").read_text())
    rows = [[cell.text for cell in row] for row in body.iter("tr")]
    for name, fact in (("longest piece", "num_tokens"), ("longest bar", "longest_bar")):
        longest = max(pieces, key=lambda facts: facts[fact])
        expected = [f"{longest[fact]:,}", longest["split"], longest["piece"], longest["source"]]
        assert [name, *expected] in rows


def test_pieces_whose_bar_no_row_holds_are_counted(
    pieces: list[dict[str, Any]], tmp_path: Path
) -> None:
    lengths = [1024, 1025, 2049, 5000]
    long = [pieces[0] | {"longest_bar": length} for length in lengths]
    write_report(tmp_path, iter(long), {}, 0, title="long bars")
    body = body_of((tmp_path / "report.html").read_text())
    rows = {row[0].text: row[-1].text for row in body.iter("tr") if len(row) == 5}
    assert [rows[name] for name in ("1k", "2k", "4k", "8k")] == ["3", "2", "1", "0"]


def test_facts_without_a_longest_bar_are_reported_without_it(
    pieces: list[dict[str, Any]], tmp_path: Path
) -> None:
    known = [{name: facts[name] for name in facts if name != "longest_bar"} for facts in pieces]
    write_report(tmp_path, iter(known), {}, 0, title="no bars")
    text = "".join(body_of((tmp_path / "report.html").read_text()).itertext())
    assert "longest piece" in text
    assert "longest bar" not in text


def test_every_count_of_the_quantiser_has_words() -> None:
    words = {name: quantised_words(name) for name in QUANTISED}
    assert len(set(words.values())) == len(words)
    assert all(" " in said and said != name.replace("_", " ") for name, said in words.items())


def test_a_narrow_axis_still_has_its_ticks() -> None:
    histogram = Histogram()
    histogram.add(np.array([34, 38, 40, 99]))
    assert log_histogram(histogram, name="bars").count('class="tick"') >= 4


def test_the_parquet_file_holds_one_typed_row_for_each_piece(
    report: Path, pieces: list[dict[str, Any]]
) -> None:
    table = pq.read_table(report / "pieces.parquet")
    assert table.num_rows == len(pieces)
    assert str(table.schema.field("instruments").type).startswith("list<")
    assert str(table.schema.field("num_tokens").type) == "int32"
    for row, facts in zip(table.to_pylist(), pieces, strict=True):
        for name in ("piece", "source", "split", "num_tokens", "longest_bar", "metres", "key"):
            assert row[name] == facts[name]
        assert row["instruments"] == facts["instruments"]
        assert row["quantised_notes"] == facts["quantised"]["notes"]
        assert row["tempo_bpm_lowest"] == pytest.approx(facts["tempo_bpm"][0])
        assert row["duration_seconds"] == facts["duration_seconds"]


def test_same_pieces_give_the_same_bytes(
    report: Path, pieces: list[dict[str, Any]], tmp_path: Path
) -> None:
    write_report(tmp_path, iter(pieces), REJECTED, 2, title="Bach & <Co>")
    for name in ("report.html", "pieces.parquet"):
        assert (tmp_path / name).read_bytes() == (report / name).read_bytes()


def test_facts_without_a_column_of_their_own_are_kept(pieces: list[dict[str, Any]]) -> None:
    [table] = row_groups([pieces[0] | {"caption": "圣咏", "genre": ["a"]}])
    assert json.loads(table["extra"][0].as_py()) == {"caption": "圣咏", "genre": ["a"]}


def test_a_corpus_without_a_piece_still_gets_its_report(tmp_path: Path) -> None:
    write_report(tmp_path, [], {"no_notes": 5}, 0, title="nothing")
    text = "".join(body_of((tmp_path / "report.html").read_text()).itertext())
    assert "5 files in = 0 pieces + 0 duplicates + 5 rejected" in text
    assert pq.read_table(tmp_path / "pieces.parquet").num_rows == 0


def test_one_piece_of_extremes_is_drawn(pieces: list[dict[str, Any]], tmp_path: Path) -> None:
    extreme = pieces[0] | {
        "num_tokens": 1_000_000,
        "num_bars": 1,
        "num_notes": 1,
        "duration_seconds": 0.0,
        "instruments": ["#D", *(f"#P{program}" for program in range(128))],
        "key": None,
        "tempo_bpm": [21.21, 339.41],
        "off_grid": 1.0,
        "recovered": "gzip",
    }
    write_report(tmp_path, [extreme], {}, 0, title="one")
    page = (tmp_path / "report.html").read_text()
    assert "nan" not in page
    text = "".join(body_of(page).itertext())
    assert "Files mended" in text
    assert "1.0 M" in text


def test_pieces_are_drawn_group_by_group(pieces: list[dict[str, Any]]) -> None:
    drawn = 0

    def many() -> Iterator[dict[str, Any]]:
        nonlocal drawn
        while True:
            drawn += 1
            yield pieces[0]

    assert next(row_groups(many())).num_rows == ROWS_PER_GROUP
    assert drawn == ROWS_PER_GROUP


def test_clusters_are_counted_the_same_in_one_pass_and_in_many(
    pieces: list[dict[str, Any]], tmp_path: Path
) -> None:
    names = [f"{cluster * 0x9E3779B97F4A7C15 % 2**96:024x}" for cluster in range(1, 31)]
    clustered = [
        pieces[0] | {"cluster": name}
        for place, name in enumerate(names)
        for _ in range(place % 3 + 1)
    ]
    write_report(tmp_path, clustered, {}, 0, title="clusters")
    path = tmp_path / "pieces.parquet"
    assert cluster_sizes(path) == cluster_sizes(path, rows_at_once=7) == {1: 10, 2: 10, 3: 10}
    assert "50 pieces (83.3 %) stand in 20 clusters" in (tmp_path / "report.html").read_text()


@given(st.lists(st.integers(0, 500), min_size=1), st.integers(1, 600))
def test_a_histogram_answers_as_the_values_themselves_do(values: list[int], limit: int) -> None:
    histogram = Histogram()
    for part in np.array_split(np.array(values), 3):
        histogram.add(part)
    array = np.array(values)
    assert histogram.total == len(values)
    assert histogram.quantile(0.5) == np.quantile(array, 0.5, method="inverted_cdf")
    assert histogram.share_up_to(limit) == np.mean(array <= limit)
    assert histogram.weight_within(limit) * max(array.sum(), 1) == pytest.approx(
        np.minimum(array, limit).sum()
    )
    assert histogram.weight_up_to(limit) * max(array.sum(), 1) == pytest.approx(
        array[array <= limit].sum()
    )


def test_coverage_is_that_of_the_pieces(pieces: list[dict[str, Any]]) -> None:
    statistics = PieceStatistics()
    for table in row_groups(pieces):
        statistics.add(table)
    tokens = np.array([facts["num_tokens"] for facts in pieces])
    limit = int(np.median(tokens))
    assert statistics.tokens.share_up_to(limit) == np.mean(tokens <= limit)
    assert statistics.total("tokens") == tokens.sum()
    assert statistics.total_seconds == pytest.approx(
        sum(facts["duration_seconds"] for facts in pieces)
    )
