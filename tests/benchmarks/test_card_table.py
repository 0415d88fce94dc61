import json
from pathlib import Path

import pytest

from meloformer.benchmarks.card_table import (
    CardRow,
    card_rows,
    formula,
    rating,
    rows_that_fit,
)
from meloformer.benchmarks.workload import Workload
from meloformer.errors import ConfigError
from meloformer.model.memory import BatchSize
from meloformer.training.cards import CARDS, find_card
from meloformer.training.memory import Partitioning, forecast

WORKLOAD = Workload(max_seq_len=1024)


def write_report(folder: Path, name: str, device: str, *entries: dict, **more) -> None:
    common = {"model_size": "small", "rule": WORKLOAD.attention, "max_seq_len": 1024}
    train = [common | entry for entry in entries]
    (folder / name).write_text(json.dumps({"device": device, "train": train} | more))


def test_a_modelled_row_is_peak_times_mfu_over_operations_and_says_so() -> None:
    row = next(r for r in card_rows(WORKLOAD, mfu=0.25) if r.card.name == "A800")
    speed = 312e12 * 0.25 / WORKLOAD.flops_per_token()
    assert row.figures == "modelled"
    assert row.tokens_per_second == pytest.approx(speed)
    assert row.hours == pytest.approx(529_000 * 3 * 5_418 / speed / 3600)
    assert row.cost is None


def test_the_cost_is_hours_times_price() -> None:
    (row,) = card_rows(WORKLOAD, mfu=0.4, price_per_hour=8.9, cards=[find_card("H800")])
    assert row.cost == pytest.approx(8.9 * row.hours)


def test_a_report_on_the_same_model_rule_and_length_makes_its_row_measured(tmp_path) -> None:
    write_report(
        tmp_path,
        "gpu-h800-abc.json",
        "NVIDIA H800",
        {"tokens_per_second": 100_000},
        {"tokens_per_second": 900_000, "rule": "full"},
        {"tokens_per_second": 900_000, "model_size": "base"},
        {"tokens_per_second": 900_000, "max_seq_len": 2048},
        {"tokens_per_second": None},
    )
    rows = {row.card.name: row for row in card_rows(WORKLOAD, mfu=0.4, reports=tmp_path)}
    assert rows["H800"].figures == "measured"
    assert rows["H800"].source == "gpu-h800-abc.json"
    assert rows["H800"].hours == pytest.approx(WORKLOAD.hours(100_000))
    assert {row.figures for name, row in rows.items() if name != "H800"} == {"modelled"}


def test_the_best_report_counts_and_what_is_no_report_is_passed_over(tmp_path) -> None:
    write_report(tmp_path, "gpu-a.json", "NVIDIA H200", {"tokens_per_second": 5})
    write_report(tmp_path, "gpu-b.json", "NVIDIA H200", {"tokens_per_second": 7})
    write_report(tmp_path, "gpu-c.json", "NVIDIA H200", {"tokens_per_second": 6})
    write_report(tmp_path, "gpu-d.json", "some other device", {"tokens_per_second": 9})
    (tmp_path / "gpu-e.json").write_text("{")
    (tmp_path / "gpu-f.json").write_text("[]")
    (tmp_path / "gpu-g.json").write_text('{"device": "NVIDIA H200", "train": [3]}')
    (row,) = card_rows(WORKLOAD, mfu=0.4, reports=tmp_path, cards=[find_card("H200")])
    assert (row.tokens_per_second, row.source) == (7, "gpu-b.json")


def test_a_folder_of_reports_that_is_not_there_leaves_all_rows_modelled(tmp_path) -> None:
    rows = card_rows(WORKLOAD, mfu=0.4, reports=tmp_path / "absent")
    assert {row.figures for row in rows} == {"modelled"}
    assert [row.card for row in rows] == list(CARDS)


def test_cards_are_rated_by_their_peak_and_what_holds_no_row_is_not_rated() -> None:
    rows = {row.card.name: row.rating for row in card_rows(WORKLOAD, mfu=0.4)}
    assert (rows["H800"], rows["B200"], rows["A100 80 GB"], rows["H20"]) == ("A", "A", "B", "C")
    assert rating(1.0, batch=0) == "-"


def test_the_rows_that_fit_are_the_most_that_the_forecast_leaves_room_for() -> None:
    workload = Workload(model_size="large")
    rows = {row.card.name: row for row in card_rows(workload, mfu=0.4)}

    def peak(row: CardRow, batch: int) -> int:
        size = BatchSize.of(batch, workload.max_seq_len, checkpointing=row.checkpointing)
        return forecast(workload.model, size, Partitioning()).peak

    for row in rows.values():
        room = 0.9 * row.card.memory_gib * (1 << 30)
        assert peak(row, row.batch) <= room < peak(row, row.batch + 1)
    assert 1 <= rows["A100 40 GB"].batch < rows["H800"].batch < rows["H200"].batch
    assert rows["H200"].checkpointing == "none"


def test_where_no_row_fits_the_least_checkpointing_that_helps_is_named() -> None:
    long_rows = Workload(model_size="large", max_seq_len=16_384)
    (row,) = card_rows(long_rows, mfu=0.4, cards=[find_card("RTX 4090")])
    assert row.batch >= 1 and row.checkpointing != "none" and row.rating == "C"
    endless = Workload(model_size="large", max_seq_len=1 << 20)
    assert rows_that_fit(find_card("RTX 4090"), endless) == (0, "layer")


def test_a_card_is_found_by_its_name_and_by_its_devices() -> None:
    assert find_card("rtx 5090") is find_card("NVIDIA GeForce RTX 5090")
    with pytest.raises(ConfigError, match="--card H900: unknown; allowed: H800, "):
        find_card("H900")


def test_the_formula_holds_the_numbers_that_were_used() -> None:
    said = formula(WORKLOAD, 0.4)
    assert "529,000 pieces x 3 epochs x 5,418 tokens" in said
    assert f"{WORKLOAD.flops_per_token() / 1e9:.3f}e9 operations" in said
