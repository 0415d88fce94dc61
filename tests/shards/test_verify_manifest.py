import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from meloformer.shards.manifest import load_manifest, parse_manifest
from meloformer.shards.storage import open_storage
from meloformer.shards.verify import find_faults
from tests.shards.damage import edit_manifest


@pytest.fixture
def shards(built: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged, of a folder with duplicates and rejections."""
    return Path(shutil.copytree(built, tmp_path / "shards"))


def faults_of(folder: Path) -> list[str]:
    text = (folder / "manifest.json").read_bytes()
    manifest = parse_manifest(text, "manifest.json", counts_must_fit=False)
    return list(find_faults(open_storage(folder), manifest))


def edit_card(folder: Path, edit: Callable[[str], str]) -> None:
    path = folder / "README.md"
    text = path.read_text(encoding="utf-8")
    assert edit(text) != text
    path.write_text(edit(text), encoding="utf-8")


def edit_rejected(folder: Path, edit: Callable[[list[str]], object]) -> None:
    path = folder / "rejected.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    edit(lines)
    path.write_text("".join(lines), encoding="utf-8")


def test_a_whole_folder_with_duplicates_and_rejections_has_no_faults(built: Path) -> None:
    manifest = load_manifest(built)
    assert manifest.num_duplicates
    assert manifest.num_rejected
    assert faults_of(built) == []


def test_every_total_that_its_shards_deny_is_named(shards: Path) -> None:
    totals = ("pieces", "bars", "notes", "tokens")

    def edit(data: dict[str, Any]) -> None:
        for split in data["splits"].values():
            split.update({name: split[name] + 1 for name in totals})
        data["counts"].update(pieces=1000, rejected=2000, duplicates=0)
        data["tokenizer"]["vocabulary_size"] += 1

    edit_manifest(shards, edit)
    faults = faults_of(shards)
    for split in ("train", "valid", "test"):
        for name in totals:
            assert any(f"manifest.json: {split}: found {name} = " in fault for fault in faults)
    for found in (
        "manifest.json: counts: found pieces = 1000",
        "manifest.json: counts: found rejected = 2000",
        "manifest.json: tokenizer: found vocabulary_size =",
        "expected pieces + duplicates + rejected",
        "rejected.jsonl: found 2 lines of reason duplicate, expected 0 by manifest.json",
    ):
        assert any(found in fault for fault in faults), found


def test_a_total_that_is_missing_is_named(shards: Path) -> None:
    edit_manifest(shards, lambda data: data["splits"]["train"].pop("notes"))
    [fault] = faults_of(shards)
    assert "train: found notes = None, its shards and reasons give" in fault


def test_files_of_the_inputs_that_do_not_add_up_are_named(shards: Path) -> None:
    edit_manifest(shards, lambda data: data["inputs"][0].update(files=1))
    faults = faults_of(shards)
    assert any("the files of its inputs add up to 1" in fault for fault in faults)


@pytest.mark.parametrize("change", [1, -1])
def test_counts_of_the_quantiser_that_its_pieces_deny_are_named(
    chorale_shards: Path, tmp_path: Path, change: int
) -> None:
    folder = Path(shutil.copytree(chorale_shards, tmp_path / "shards"))

    def edit(data: dict[str, Any]) -> None:
        data["quantised"]["notes"] += change

    edit_manifest(folder, edit)
    [fault] = faults_of(folder)
    assert "manifest.json: quantised: found notes = " in fault


def test_a_card_whose_figures_differ_is_named_with_both(shards: Path) -> None:
    pieces = load_manifest(shards).num_pieces
    edit_card(shards, lambda text: text.replace(f"{pieces} pieces of", "999 pieces of"))
    [fault] = faults_of(shards)
    assert fault.endswith(
        f"README.md: found 999 pieces of symbolic music, expected {pieces} pieces of symbolic music"
    )


def test_a_card_without_a_row_or_with_another_licence_is_named(shards: Path) -> None:
    rows = [line for line in (shards / "README.md").read_text().splitlines() if "| valid" in line]
    edit_card(shards, lambda text: text.replace(rows[0], "| valid | 77 | 1 | 1 | 1 | 1 |"))
    edit_card(shards, lambda text: text.replace("license:\n- ", "license:\n- mit\n- "))
    faults = faults_of(shards)
    assert any("README.md: found license mit, " in fault for fault in faults)
    assert any("README.md: found | valid | 77" in fault for fault in faults)
    assert len(faults) == 2


def test_a_card_may_be_written_on(shards: Path) -> None:
    edit_card(shards, lambda text: text + "\n## Thanks\n\n- to my cat\n\n| a | 3 |\n")
    edit_card(shards, lambda text: text.replace("tags:\n", "tags:\n- bach\n"))
    assert faults_of(shards) == []


def test_a_missing_card_is_named(shards: Path) -> None:
    (shards / "README.md").unlink()
    [fault] = faults_of(shards)
    assert "README.md: found no such file" in fault


def test_a_rejected_file_that_is_not_counted_is_found(shards: Path) -> None:
    line = json.dumps({"path": "x.mid", "reason": "no_melody"}) + "\n"
    edit_rejected(shards, lambda lines: lines.append(line))
    [fault] = faults_of(shards)
    assert fault.endswith(
        "rejected.jsonl: found 1 lines of reason no_melody, expected 0 by manifest.json"
    )


def test_every_dropped_line_is_found(shards: Path) -> None:
    reasons = [json.loads(line)["reason"] for line in (shards / "rejected.jsonl").open()]
    assert len(set(reasons)) > 1
    for number, reason in enumerate(reasons):
        folder = Path(shutil.copytree(shards, shards.parent / str(number)))
        edit_rejected(folder, lambda lines, number=number: lines.pop(number))  # type: ignore[misc]
        [fault] = faults_of(folder)
        assert (
            f"rejected.jsonl: found {reasons.count(reason) - 1} lines of reason {reason}" in fault
        )


def test_a_copy_of_a_piece_that_is_nowhere_is_found(shards: Path) -> None:
    def edit(lines: list[str]) -> None:
        [first, *_] = (n for n, line in enumerate(lines) if '"duplicate"' in line)
        lines[first] = json.dumps(json.loads(lines[first]) | {"key": "f" * 24}) + "\n"

    edit_rejected(shards, edit)
    [nowhere] = faults_of(shards)
    assert f"a copy repeats {'f' * 24}, which is no piece of the shards" in nowhere


@pytest.mark.parametrize(
    "text",
    [
        "no json\n",
        "[" * 100_000 + "\n",
        "[1]\n",
        '{"path": "x"}\n',
        '{"path": "x", "reason": "duplicate", "key": "z"}\n',
    ],
    ids=range(5),
)
def test_a_line_that_is_no_rejection_is_named_and_the_others_are_read(
    shards: Path, text: str
) -> None:
    def edit(lines: list[str]) -> None:
        lines[1] = text
        lines.pop()

    num_lines = len((shards / "rejected.jsonl").read_text().splitlines())
    edit_rejected(shards, edit)
    no_rejection, number = faults_of(shards)
    assert "rejected.jsonl: found no rejection in line 2 (" in no_rejection
    assert f"found {num_lines - 1} lines, expected {num_lines} by manifest.json" in number


def test_a_missing_list_of_rejections_is_named(shards: Path) -> None:
    (shards / "rejected.jsonl").unlink()
    [fault] = faults_of(shards)
    assert "rejected.jsonl: found no such file" in fault
