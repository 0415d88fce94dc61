"""Datasets on disk in the layout of Hugging Face `datasets`, written with pyarrow alone.

Source: `save_to_disk` of datasets 4: data-*.arrow in the stream format beside two JSON files.
"""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

ROWS_PER_BATCH = 5

MIDICAPS_ROW: dict[str, Any] = {
    "genre": ["electronic", "pop"],
    "genre_prob": [0.71, 0.29],
    "mood": ["film", "dark"],
    "mood_prob": [0.5, 0.25],
    "key": "F# minor",
    "time_signature": "4/4",
    "tempo": 137,
    "tempo_word": "Allegro",
    "duration": 182,
    "duration_word": "Song length",
    "chord_summary": ["A", "F#m", "D"],
    "chord_summary_occurence": 4,
    "instrument_summary": ["Piano", "Strings"],
    "instrument_numbers_sorted": [0, 48],
    "all_chords": ["A", "F#m"],
    "all_chords_timestamps": [0.46, 2.3],
    "test_set": False,
}


def write_stream(path: Path, table: pa.Table) -> Path:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=ROWS_PER_BATCH)
    return path


def save_to_disk(folder: Path, table: pa.Table, num_shards: int = 2, licence: str = "") -> Path:
    """A Dataset."""
    folder.mkdir(parents=True)
    names = []
    size = -(-len(table) // num_shards)
    for number in range(num_shards):
        name = f"data-{number:05d}-of-{num_shards:05d}.arrow"
        write_stream(folder / name, table.slice(number * size, size))
        names.append({"filename": name})
    state = {"_data_files": names, "_fingerprint": "0" * 16, "_format_type": None, "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    info = {"citation": "", "description": "", "features": {}, "homepage": "", "license": licence}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


def save_dict_to_disk(folder: Path, splits: dict[str, pa.Table]) -> Path:
    """A DatasetDict."""
    folder.mkdir(exist_ok=True)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(splits)}))
    for name, table in splits.items():
        save_to_disk(folder / name, table, num_shards=1)
    return folder
