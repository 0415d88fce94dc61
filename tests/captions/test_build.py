"""launch/caption.py: caption sets of real shards, and what is refused."""

import json
import tarfile
from collections import Counter

import pytest

from launch.caption import CaptionConfig, caption
from meloformer.captions.build import build_captions
from meloformer.captions.caption_set import facts_path, read_captions, read_facts
from meloformer.captions.settings import CaptionSettings
from meloformer.command_line import run_recipe
from meloformer.errors import ConfigError
from meloformer.file_sums import sha256_of
from meloformer.shards.build import build_shards
from meloformer.shards.manifest import ShardSettings
from meloformer.shards.pool import local_engine
from meloformer.shards.reader import ShardFolder
from meloformer.shards.sources import open_source
from meloformer.tokens.attributes import prefix_length
from meloformer.tokens.windows import bar_starts, summary_windows, window_length


@pytest.fixture(scope="module")
def captions(chorale_shards, tmp_path_factory):
    """A set of chorales whose windows are short, so that pieces have several."""
    path = tmp_path_factory.mktemp("captions") / "captions.jsonl"
    settings = CaptionSettings(max_seq_len=600, overlap=2, num_captions=4)
    build_captions(str(chorale_shards), path, settings)
    return path


@pytest.fixture
def recipe(capsys):
    def run(*arguments):
        with pytest.raises(SystemExit) as ending:
            run_recipe(caption, CaptionConfig, [str(word) for word in arguments])
        return ending.value.code, *capsys.readouterr()

    return run


def test_the_set_holds_every_window_of_every_piece_in_order(chorale_shards, captions):
    found = list(read_captions(captions))
    folder = ShardFolder.open(chorale_shards)
    expected = []
    for split in ("train", "valid", "test"):
        index = folder.split(split)
        for piece in range(index.num_pieces):
            ids = index.read(piece)
            starts = bar_starts(ids)
            for first, last in summary_windows(ids, starts, max_tokens=600, overlap=2):
                assert window_length(prefix_length(ids), starts, first, last) <= 600
                expected.append((split, index.key(piece), first, last))
    assert [window.name for window in found] == expected
    assert len(expected) > folder.manifest.num_pieces
    for window in found:
        assert window.attributes["bars"] == window.last_bar - window.first_bar
        assert window.location.endswith(".mxl")
        assert {len(texts) for texts in window.captions.values()} == {4}


def test_templates_of_the_judge_never_stand_in_captions_for_training(captions):
    held_out = {k: set(v) for k, v in read_facts(captions)["held_out_templates"].items()}
    used = Counter()
    for window in read_captions(captions):
        for language, templates in window.templates.items():
            for names in (set(template.split("+")) for template in templates):
                if window.split == "train":
                    assert not names & held_out[language]
                else:
                    assert names <= held_out[language]
                used[window.split, language] += 1
    assert set(used) == {(s, lang) for s in ("train", "valid", "test") for lang in ("en", "zh")}


def test_the_facts_tell_the_counts_and_the_sums(chorale_shards, captions):
    facts = read_facts(captions)
    windows = list(read_captions(captions))
    assert facts["captions_sha256"] == sha256_of(captions)
    assert facts["shards_manifest_sha256"] == ShardFolder.open(chorale_shards).manifest_sha256
    assert facts["counts"]["windows"] == len(windows)
    assert facts["counts"]["captions_en"] == facts["counts"]["captions_zh"] == 4 * len(windows)
    assert facts["counts"]["windows_train"] == sum(w.split == "train" for w in windows)
    assert facts["settings"]["max_seq_len"] == 600


def test_bytes_are_the_same_for_one_and_for_two_workers(chorale_shards, captions, tmp_path):
    other = tmp_path / "captions.jsonl"
    settings = CaptionSettings(max_seq_len=600, overlap=2, num_captions=4)
    build_captions(str(chorale_shards), other, settings, num_workers=2)
    assert other.read_bytes() == captions.read_bytes()
    assert facts_path(other).read_bytes() == facts_path(captions).read_bytes()


def test_another_seed_says_other_things_of_the_same_windows(chorale_shards, captions, tmp_path):
    settings = CaptionSettings(max_seq_len=600, overlap=2, num_captions=4, seed=1)
    build_captions(str(chorale_shards), tmp_path / "c.jsonl", settings)
    pairs = list(zip(read_captions(captions), read_captions(tmp_path / "c.jsonl"), strict=True))
    assert all(one.attributes == other.attributes for one, other in pairs)
    assert sum(one.captions == other.captions for one, other in pairs) == 0


def test_labels_and_captions_of_a_user_join_in(chorale_shards, tmp_path, recipe):
    source = ShardFolder.open(chorale_shards).split("train").facts(0)["source"]
    own = tmp_path / "own.jsonl"
    own.write_text(
        "".join(
            json.dumps({"location": f"corpus/{source}", "caption": text}) + "\n"
            for text in ("My own words.", "我自己的话")
        )
    )
    labels = tmp_path / "labels.jsonl"
    labels.write_text(json.dumps({"file": source, "genre": "chorale", "mood": "solemn"}) + "\n")
    output = tmp_path / "captions.jsonl"
    arguments = ["--data", chorale_shards, "--output", output, "--languages", "en"]
    arguments += ["--user_captions", own, "--labels", labels, "--num_workers", 1]
    code, out, _ = recipe(*arguments, "--num_captions", 2)
    assert code == 0 and "My own words." in out
    labelled = [w for w in read_captions(output) if w.attributes["labels"]]
    assert {window.location for window in labelled} == {source}
    for window in labelled:
        assert window.captions["en"][-1] == "My own words." and list(window.captions) == ["en"]
        assert window.templates["en"][-1] == "user" and window.mentions["en"][-1] is None
    facts = read_facts(output)
    assert facts["counts"]["labelled_pieces"] == facts["counts"]["pieces_with_user_captions"] == 1
    assert str(tmp_path) not in facts_path(output).read_text()


def test_the_same_set_is_written_again_and_another_is_kept(captions, chorale_shards, recipe):
    before = captions.read_bytes()
    arguments = ["--data", chorale_shards, "--output", captions, "--num_workers", 1]
    code, _, err = recipe(*arguments)
    assert code == 2 and "max_seq_len, overlap, num_captions" in err.replace("max_bars, ", "")
    assert "--overwrite" in err and captions.read_bytes() == before
    same = ["--max_seq_len", 600, "--overlap", 2, "--num_captions", 4, "--examples", 0]
    assert recipe(*arguments, *same)[0] == 0
    assert captions.read_bytes() == before


def test_captions_of_other_patterns_are_another_set(captions, chorale_shards, tmp_path, recipe):
    copy = tmp_path / "captions.jsonl"
    copy.write_bytes(captions.read_bytes())
    facts_path(copy).write_text(
        facts_path(captions).read_text().replace('"patterns_sha256": "', '"patterns_sha256": "0')
    )
    same = ["--max_seq_len", 600, "--overlap", 2, "--num_captions", 4, "--num_workers", 1]
    code, _, err = recipe("--data", chorale_shards, "--output", copy, *same)
    assert code == 2 and "(different: the sentence patterns of this version)" in err


def test_what_stands_at_the_output_and_is_no_caption_set_is_kept(chorale_shards, tmp_path, recipe):
    output = tmp_path / "mine.jsonl"
    output.write_text("mine")
    code, _, err = recipe("--data", chorale_shards, "--output", output, "--overwrite")
    assert code == 2 and "no caption set" in err and output.read_text() == "mine"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--languages", "fr"], "--languages: found fr; allowed en, zh"),
        (["--languages", "en", "en"], "found one twice"),
        (["--data", "{tmp}/empty"], "is no shard folder"),
        (["--user_captions", "{tmp}/no_location.jsonl"], "line 1: found caption; needed"),
        (["--user_captions", "{tmp}/others.jsonl"], "none of its locations (such as x/y.mid)"),
        (["--labels", "folder"], "say nothing of any file"),
        (["--labels", "{tmp}/absent.csv"], "found no such file"),
        (["--output", "{tmp}/captions.txt"], "ends with .jsonl"),
        (["--max_seq_len", "16"], "no bar of"),
        (["--held_out_templates", "1"], "allowed 0 up to, not with, 1"),
        (["--num_captions", "0"], "allowed 1 or more"),
        (["--max_bars", "0"], "allowed 1 or more"),
        (["--num_workers", "0"], "allowed 1 or more"),
    ],
)
def test_bad_input_is_refused_in_a_line_and_nothing_is_written(
    flags, message, chorale_shards, tmp_path, recipe
):
    (tmp_path / "empty").mkdir()
    (tmp_path / "no_location.jsonl").write_text('{"caption": "x"}\n')
    (tmp_path / "others.jsonl").write_text('{"location": "x/y.mid", "caption": "x"}\n')
    before = sorted(tmp_path.iterdir())
    output = tmp_path / "captions.jsonl"
    given = [flag.format(tmp=tmp_path) for flag in flags]
    code, _, err = recipe("--data", chorale_shards, "--output", output, "--num_workers", 1, *given)
    assert code == 2 and message in err and err.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_a_set_without_its_facts_or_with_a_foreign_line_does_not_open(captions, tmp_path):
    copy = tmp_path / "captions.jsonl"
    copy.write_bytes(captions.read_bytes())
    with pytest.raises(ConfigError, match=r"found no captions\.json beside it"):
        next(read_captions(copy))
    facts_path(copy).write_bytes(facts_path(captions).read_bytes())
    copy.write_text('{"location": "a.mid"}\n')
    with pytest.raises(ConfigError, match="line 1: found fields location; missing"):
        next(read_captions(copy))
    facts_path(copy).write_text('{"name": "meloformer-captions", "format": 99}')
    with pytest.raises(ConfigError, match="99"):
        read_facts(copy)
    with pytest.raises(ConfigError, match="no such file"):
        read_facts(tmp_path / "absent.jsonl")


def test_a_build_that_is_stopped_leaves_nothing(chorale_shards, tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_captions(
            str(chorale_shards), tmp_path / "c.jsonl", CaptionSettings(), on_progress=stop
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("corpus", "labels", "kinds", "share"),
    [("mma_grooves", "labels.jsonl", {"genre"}, 0.75), ("easyrpg_rtp", "name", {"mood"}, 0.75)],
)
def test_real_corpora_have_labels_that_captions_speak_of(
    corpus, labels, kinds, share, shared_corpora, tmp_path
):
    with tarfile.open(shared_corpora / f"{corpus}.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    source = open_source(str(tmp_path / corpus))
    build_shards(source, tmp_path / "shards", ShardSettings(), run=local_engine(1))
    table = tmp_path / corpus / labels
    settings = CaptionSettings(labels=(str(table) if table.exists() else labels,))
    facts = build_captions(str(tmp_path / "shards"), tmp_path / "captions.jsonl", settings)
    assert facts["counts"]["labelled_pieces"] > share * facts["counts"]["pieces"]
    said = Counter()
    for window in read_captions(tmp_path / "captions.jsonl"):
        for language, mentions in window.mentions.items():
            said[language] += sum(bool(kinds & set(map(str, names))) for names in mentions)
    counts = facts["counts"]
    assert min(said["en"], said["zh"]) > 0.3 * counts["captions_en"]
