"""Labels and captions of a user's: what names and files tell of a piece."""

import json

import pytest

from meloformer.captions.label_words import GENRES, MOODS, SCENES, is_chinese, labels_in
from meloformer.captions.labels import load_labels
from meloformer.captions.locations import ByLocation
from meloformer.captions.user_captions import load_user_captions
from meloformer.errors import ConfigError


def write_lines(path, *objects):
    path.write_text("".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in objects))
    return path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("60sRockSus", {"genre": ["rock"]}),
        ("casio/fast_big_band_0", {"genre": ["big band", "swing"]}),
        ("BossaNova", {"genre": ["bossa nova"]}),
        ("R&BSus", {"genre": ["R&B"]}),
        ("Hip_Hop", {"genre": ["hip-hop"]}),
        ("Waltzes", {}),
        ("Ballads", {"genre": ["ballad"]}),
        ("poprocks", {}),
        ("Boss 3", {"scene": ["a boss fight"], "mood": ["menacing"]}),
        ("Bossa", {"genre": ["bossa nova"]}),
        ("Opus 12 No. 3", {}),
    ],
)
def test_labels_are_found_as_whole_words_however_they_are_written(text, expected):
    assert labels_in(text) == expected


def test_every_label_has_words_in_both_languages_and_is_found_by_its_own_name():
    for table in (GENRES, MOODS, SCENES):
        assert all(is_chinese(name.zh) and name.en.isascii() for name in table.values())
        assert len({name.zh for name in table.values()}) == len(table)
    for kind, table in (("genre", GENRES), ("mood", MOODS)):
        for name in table:
            if name != "fanfare":  # what is called so is known by its moment
                assert name in labels_in(name)[kind]


def test_folders_and_names_tell_only_where_they_are_asked():
    source = "Jazz/slow/Battle 1.mid"
    assert load_labels(["folder"]).of(source) == {"genre": ["jazz"]}
    assert load_labels(["name"]).of(source)["scene"] == ["a battle scene"]
    assert load_labels(["folder", "name"]).of(source).keys() == {"genre", "scene", "mood"}
    assert load_labels([]).of(source) == {}


def test_a_file_of_labels_speaks_of_its_files(tmp_path):
    path = write_lines(
        tmp_path / "labels.jsonl",
        {"file": "a.mid", "groove": "JazzWaltz", "tempo": 120},
        {"location": "set/b.mid", "genre": ["electronic", "vaporwave"], "mood": "Dark"},
        {"file": "c.mid", "groove": "Click"},
    )
    labels = load_labels([str(path)])
    assert labels.of("a.mid") == {"genre": ["jazz", "waltz"]}
    assert labels.of("b.mid") == {"genre": ["electronic", "vaporwave"], "mood": ["dark"]}
    assert labels.of("c.mid") == labels.of("d.mid") == {}


@pytest.mark.parametrize(("suffix", "delimiter"), [("csv", ","), ("tsv", "\t")])
def test_tables_hold_labels_too(tmp_path, suffix, delimiter):
    path = tmp_path / f"labels.{suffix}"
    path.write_text(f"filename{delimiter}genre\na.mid{delimiter}folk\n")
    assert load_labels([str(path)]).of("x/a.mid") == {"genre": ["folk"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"genre": "rock"}', "line 1: found genre; needed: `location`"),
        ('{"file": "a.mid", "key": "C"}', "found no genre, mood or scene"),
        ("", "found no genre, mood or scene"),
        ("no json", "line 1: found no JSON"),
        ("[1]", "line 1: found list; allowed: one JSON object a line"),
    ],
)
def test_a_file_of_labels_that_tells_nothing_is_refused(tmp_path, text, message):
    path = tmp_path / "labels.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_labels([str(path)])
    with pytest.raises(ConfigError, match="found no such file; allowed: folder"):
        load_labels([str(tmp_path / "absent.jsonl")])


def test_a_location_is_found_by_the_end_of_its_path_and_never_by_chance():
    by = ByLocation([("lmd/0/a.mid", 1), ("lmd/1/a.mid", 2), ("xa.mid", 3), ("lmd/0/a.mid", 4)])
    assert by.find("lmd/0/a.mid") == by.find("./0/a.mid") == by.find("big/lmd/0/a.mid") == [1, 4]
    assert by.find("a.mid") == []  # two could be meant
    assert by.find("2/a.mid") == by.find("0/xa.midi") == by.find("aa.mid") == []
    assert by.num_entries == 4


def test_captions_of_a_user_know_their_language(tmp_path):
    path = write_lines(
        tmp_path / "captions.jsonl",
        {"location": "a.mid", "caption": "A  calm\npiece.", "genre": "x"},
        {"location": "a.mid", "caption": "一首E小调的曲子"},
        {"location": "b.mid", "caption": ["one", "two"]},
    )
    captions = load_user_captions(path)
    assert captions.find("a.mid") == [("en", "A calm piece."), ("zh", "一首E小调的曲子")]
    assert captions.find("b.mid") == [("en", "one"), ("en", "two")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"caption": "x"}', "line 1: found caption; needed: `location`, a text"),
        ('{"location": "a.mid", "caption": " "}', "needed: `caption`, a text"),
        ('{"location": "a.mid", "caption": [3]}', "needed: `caption`, a text"),
        ('\n{"location": 3, "caption": "x"}', "line 2: found caption, location; needed"),
        ("", "found no caption"),
        ("{", "line 1: found no JSON"),
    ],
)
def test_captions_of_a_user_without_location_or_text_are_refused(tmp_path, text, message):
    path = tmp_path / "captions.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_user_captions(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_user_captions(tmp_path / "absent.jsonl")
