"""Text states on disk: what goes in comes out, and nothing half-written or foreign opens."""

import json
import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from meloformer.bridge import text_encoder
from meloformer.bridge.text_encoder import TextEncoder
from meloformer.bridge.text_states import (
    EncodedText,
    TextStatesFolder,
    find_or_write_states,
    write_states,
)
from meloformer.errors import ConfigError
from tests.bridge.text_encoders import SENTENCES, write_qwen3

TEXTS = [
    *(
        EncodedText(
            text=sentence,
            language="zh" if index > 2 else "en",
            split="train",
            key=f"piece-{index // 2}",
            first_bar=0,
            last_bar=16,
        )
        for index, sentence in enumerate(SENTENCES)
    ),
    EncodedText(text="A text of no window."),
]
SENTENCES_OF_TEXTS = [text.text for text in TEXTS]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    return TextEncoder.load(write_qwen3(tmp_path_factory.mktemp("qwen3")))


@pytest.fixture(scope="module")
def other_encoder(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    return TextEncoder.load(write_qwen3(tmp_path_factory.mktemp("other"), seed=1))


def test_states_come_back_as_the_encoder_gave_them(encoder: TextEncoder, tmp_path: Path) -> None:
    """Across several files, in any order, with a text twice."""
    folder = write_states(encoder, iter(TEXTS), tmp_path / "states", texts_per_shard=4)
    assert len(list(folder.path.glob("states-*.safetensors"))) == 2
    assert folder.texts == TEXTS and len(folder) == len(TEXTS)
    assert folder.encoder == encoder.facts() and folder.width == encoder.width
    assert folder.lengths.tolist() == [len(ids) for ids in encoder.token_ids(SENTENCES_OF_TEXTS)]
    indices = [5, 0, 3, 4, 0]
    found = TextStatesFolder.open(folder.path).batch(indices)
    expected = encoder.encode([SENTENCES_OF_TEXTS[index] for index in indices])
    assert torch.equal(found.mask_BL, expected.mask_BL)
    torch.testing.assert_close(found.states_BLW, expected.states_BLW, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.pooled_BW, expected.pooled_BW, atol=1e-5, rtol=0)
    folder.verify()


def test_bare_texts_need_no_window(encoder: TextEncoder, tmp_path: Path) -> None:
    folder = write_states(encoder, list(SENTENCES), tmp_path / "states")
    assert [text.text for text in folder.texts] == list(SENTENCES)
    assert folder.windows() == {}
    lines = (folder.path / "texts.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"text": text} for text in SENTENCES]


def test_a_text_may_hold_any_sign(encoder: TextEncoder, tmp_path: Path) -> None:
    texts = ["one\u2028two", "one\x85two", 'a "b"\n\tc\r\n', "🎵 \x0b"]
    folder = write_states(encoder, texts, tmp_path / "states")
    assert [text.text for text in folder.texts] == texts
    expected = encoder.encode(texts).pooled_BW
    torch.testing.assert_close(folder.batch(range(4)).pooled_BW, expected, atol=1e-5, rtol=0)


def test_the_texts_of_a_window_are_found(encoder: TextEncoder, tmp_path: Path) -> None:
    folder = write_states(encoder, TEXTS, tmp_path / "states")
    assert folder.windows() == {
        ("train", "piece-0", 0, 16): [0, 1],
        ("train", "piece-1", 0, 16): [2, 3],
        ("train", "piece-2", 0, 16): [4],
    }


def test_a_reader_that_is_in_use_can_be_handed_to_a_worker(
    encoder: TextEncoder, tmp_path: Path
) -> None:
    folder = write_states(encoder, TEXTS, tmp_path / "states")
    expected = folder.batch([1]).states_BLW
    copy = pickle.loads(pickle.dumps(folder))
    assert torch.equal(copy.batch([1]).states_BLW, expected)


def test_states_of_another_encoder_are_refused(
    encoder: TextEncoder, other_encoder: TextEncoder, tmp_path: Path
) -> None:
    assert encoder.fingerprint != other_encoder.fingerprint
    folder = write_states(encoder, TEXTS, tmp_path / "states").path
    TextStatesFolder.open(folder, encoder_fingerprint=encoder.fingerprint)
    with pytest.raises(ConfigError, match="found states of the text encoder") as refusal:
        TextStatesFolder.open(folder, encoder_fingerprint=other_encoder.fingerprint)
    assert "--text_encoder" in str(refusal.value) and "\n" not in str(refusal.value)


def test_whoever_waits_is_told_how_many_texts_are_done(
    encoder: TextEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(text_encoder._TOKENS_PER_BATCH, "cpu", 1)  # each text by itself
    told: list[int] = []
    write_states(encoder, TEXTS, tmp_path / "states", texts_per_shard=4, tell=told.append)
    assert told == list(range(1, len(TEXTS) + 1))


def test_states_of_a_caption_set_are_computed_once(encoder: TextEncoder, tmp_path: Path) -> None:
    calls = 0

    def texts() -> Iterator[EncodedText]:
        nonlocal calls
        calls += 1
        yield from TEXTS

    path = tmp_path / "states"
    for _ in range(2):
        folder = find_or_write_states(encoder, texts, path, captions_sha256="a" * 64)
        assert folder.captions_sha256 == "a" * 64
    assert calls == 1
    with pytest.raises(ConfigError, match="found states of other captions"):
        find_or_write_states(encoder, texts, path, captions_sha256="b" * 64)


def test_a_folder_that_holds_something_is_not_written_into(
    encoder: TextEncoder, tmp_path: Path
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="found something there already"):
        write_states(encoder, TEXTS, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def _interrupted_texts(interrupt: Callable[[], object]) -> Iterator[EncodedText]:
    """Ends while the texts of the third file of states are being gathered."""
    for index, text in enumerate(TEXTS):
        if index == 4:
            interrupt()
        yield text


def _write_and_die(source: Path, folder: Path) -> None:
    texts = _interrupted_texts(lambda: os.kill(os.getpid(), signal.SIGKILL))
    write_states(TextEncoder.load(source), texts, folder, texts_per_shard=2)


def _killed(encoder: TextEncoder, folder: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(
        target=_write_and_die, args=(Path(encoder.name), folder)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def _stopped(encoder: TextEncoder, folder: Path) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_states(encoder, _interrupted_texts(stop), folder, texts_per_shard=2)


@pytest.mark.parametrize("end", [_stopped, pytest.param(_killed, marks=pytest.mark.slow)])
def test_an_ended_run_leaves_nothing_that_opens_and_is_gone_on_with(
    encoder: TextEncoder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    end: Callable[[TextEncoder, Path], None],
) -> None:
    folder = tmp_path / "states"
    end(encoder, folder)
    assert not folder.exists()
    with pytest.raises(ConfigError, match="no such folder"):
        TextStatesFolder.open(folder)
    (unfinished,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert len(list(unfinished.glob("states-*.safetensors"))) == 2
    with pytest.raises(ConfigError, match=r"found no manifest\.json"):
        TextStatesFolder.open(unfinished)

    encoded: list[str] = []
    encode_each = TextEncoder.encode_each

    def watched(
        self: TextEncoder, texts: list[str], *tell: Callable[[int], None]
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        encoded.extend(texts)
        return encode_each(self, texts, *tell)

    monkeypatch.setattr(TextEncoder, "encode_each", watched)
    finished = write_states(encoder, TEXTS, folder, texts_per_shard=2)
    assert encoded == SENTENCES_OF_TEXTS[4:]
    assert [path.name for path in tmp_path.iterdir()] == ["states"]
    expected = encoder.encode(SENTENCES_OF_TEXTS)
    states = finished.batch(range(len(TEXTS))).states_BLW
    torch.testing.assert_close(states, expected.states_BLW, atol=1e-5, rtol=0)


def test_what_a_killed_run_left_of_another_encoder_or_text_is_not_used(
    encoder: TextEncoder, other_encoder: TextEncoder, tmp_path: Path
) -> None:
    folder = tmp_path / "states"

    def broken(texts: list[EncodedText]) -> Iterator[EncodedText]:
        yield from texts
        raise OSError("the captions end here")

    for first_encoder, texts in (
        (other_encoder, TEXTS),
        (encoder, [replace(text, text="Another text.") for text in TEXTS] * 2),
    ):
        with pytest.raises(OSError, match="end here"):
            write_states(first_encoder, broken(texts), folder, texts_per_shard=2)
    found = write_states(encoder, TEXTS, folder, texts_per_shard=2)
    assert len(list(folder.glob("states-*.safetensors"))) == 3
    expected = encoder.encode(SENTENCES_OF_TEXTS)
    states = found.batch(range(len(TEXTS))).states_BLW
    torch.testing.assert_close(states, expected.states_BLW, atol=1e-5, rtol=0)


def test_a_refused_text_leaves_no_folder(encoder: TextEncoder, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is empty"):
        write_states(encoder, [*TEXTS, EncodedText(text=" ")], tmp_path / "states")
    assert not (tmp_path / "states").exists()
    with pytest.raises(ConfigError, match="no text"):
        write_states(encoder, [], tmp_path / "states")
    assert not (tmp_path / "states").exists()


def test_damage_is_refused_in_one_line(encoder: TextEncoder, tmp_path: Path) -> None:
    def fresh(name: str) -> Path:
        return write_states(encoder, TEXTS, tmp_path / name, texts_per_shard=4).path

    cut = fresh("cut")
    content = (cut / "states-00001.safetensors").read_bytes()
    (cut / "states-00001.safetensors").write_bytes(content[:-4])
    gone = fresh("gone")
    (gone / "states-00000.safetensors").unlink()
    lines = fresh("lines")
    (lines / "texts.jsonl").write_text('{"text": "one"}\n')
    manifest = fresh("manifest")
    (manifest / "manifest.json").write_text('{"format": 1}')
    version = fresh("version")
    (version / "manifest.json").write_text('{"format": 2}')
    for folder in (cut, gone, lines, manifest, version):
        with pytest.raises(ConfigError) as refusal:
            TextStatesFolder.open(folder)
        assert "\n" not in str(refusal.value) and "encode" in str(refusal.value)


def test_a_flipped_bit_is_found_by_its_sum(encoder: TextEncoder, tmp_path: Path) -> None:
    folder = write_states(encoder, TEXTS, tmp_path / "states")
    path = folder.path / "states-00000.safetensors"
    content = bytearray(path.read_bytes())
    content[-40] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ConfigError, match="damaged, found sum"):
        TextStatesFolder.open(folder.path).verify()
