"""The graphs of a decoding step against torch: the cache's tensors, and whole pieces through
onnxruntime.
"""

import builtins
from pathlib import Path

import numpy as np
import pytest
import torch

from meloformer.errors import CheckpointError, ConfigError, TokenError
from meloformer.generation.cache import DecodeCache
from meloformer.generation.controls import ControlConfig
from meloformer.generation.generate import generate
from meloformer.generation.labeller import Labeller
from meloformer.generation.sampling import SamplingConfig
from meloformer.hub.export import export_folder
from meloformer.hub.onnx_decoder import FOLDER_NAME, OnnxDecoder, generate_onnx
from meloformer.hub.onnx_files import check_installed, largest_difference
from meloformer.hub.onnx_graphs import AddTokens, CloseBar, empty_caches
from meloformer.model.masks import RULES, HeadGroup
from meloformer.model.weights import load_model
from meloformer.tokens.attributes import prefix_length
from tests.hub.folders import a_model, some_ids, write_model

LONELY = (HeadGroup(True, (0, 3)), HeadGroup(False, (0, 1, 2)))


@pytest.mark.parametrize("rule", [*RULES, LONELY], ids=str)
def test_the_graphs_give_the_logits_of_the_cache_at_every_step(rule) -> None:
    """Five bars, fed token by token; the prefix at once."""
    model = a_model(rule=rule, num_layers=3, num_heads=4, num_kv_heads=2).double()
    add, close = AddTokens(model), CloseBar(model)
    ids_T = some_ids(5)[:-1]
    num_prefix = prefix_length(ids_T)
    cache, labeller = DecodeCache(model, 1), Labeller(ids_T[None, :num_prefix])
    state = {
        name: x if name == "past_labels" else x.double()
        for name, x in empty_caches(model.config).items()
    }
    steps = [slice(0, num_prefix), *(slice(t, t + 1) for t in range(num_prefix, len(ids_T)))]
    for step in steps:
        ids_1N, labels = ids_T[None, step], labeller.prefix
        if step.start:
            labels = labeller.advance(ids_T[step])[:, :, None]
            if labels[2, 0, 0] == 0 and labels[0, 0, 0] > 0:
                cache.close_bar(np.array([0]), labels[0, 0] - 1)
                with torch.no_grad():
                    state["summaries"], state["own"] = close(
                        *(state[name] for name in CloseBar.inputs)
                    )
        tensors = (torch.from_numpy(ids_1N), torch.from_numpy(labels))
        with torch.no_grad():
            found, state["past_labels"], state["tokens"] = add(
                *tensors, state["past_labels"], state["tokens"], state["summaries"]
            )
        expected = cache.add(ids_1N, labels, np.array([True]))
        assert torch.allclose(found, expected, atol=1e-10)
    assert state["own"].shape[4] == 4


def test_a_model_without_summaries_is_refused_before_anything_is_written() -> None:
    with pytest.raises(ConfigError, match="without --onnx"):
        AddTokens(a_model(summaries=False, rule="full"))


def test_a_missing_package_is_named_with_the_extra_that_has_it(monkeypatch, tmp_path) -> None:
    real = builtins.__import__

    def without(name: str, *arguments, **options):
        if name.startswith("onnx"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"no package onnx;.*\[onnx\]"):
        check_installed()
    source = write_model(tmp_path / "run" / "model", a_model())
    with pytest.raises(ConfigError, match=r"\[onnx\]"):
        export_folder(source, tmp_path / "out", onnx=True)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export of a small model with its graphs."""
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("export")
    model = a_model(num_layers=2, num_heads=4, num_kv_heads=2)
    done = export_folder(write_model(folder / "model", model), folder / "out", onnx=True)
    assert done.onnx_difference is not None
    return folder / "out"


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_whole_pieces_through_onnxruntime_have_the_tokens_of_torch(exported, temperature) -> None:
    model, sampling = load_model(exported), SamplingConfig(temperature=temperature, top_p=1.0)
    num_tokens = 0
    for seed, instruments in enumerate((("0", "drums"), ("40", "41", "42"), ("0", "73"))):
        controls = ControlConfig(bars=12, tempo=120.0, instruments=instruments)
        found = generate_onnx(exported / FOLDER_NAME, controls, sampling, seed=seed)
        (expected,) = generate(model, controls, sampling, seed=seed)
        assert np.array_equal(found, expected)
        num_tokens += len(found)
    assert num_tokens > 100


@pytest.mark.slow
def test_graphs_of_other_weights_are_found_out(exported) -> None:
    assert largest_difference(load_model(exported), exported / FOLDER_NAME) < 1e-4
    other = a_model(seed=1, num_layers=2, num_heads=4, num_kv_heads=2)
    with pytest.raises(CheckpointError, match="logits differ"):
        largest_difference(other, exported / FOLDER_NAME)


@pytest.mark.slow
def test_graphs_that_are_missing_damaged_or_foreign_are_refused(exported, tmp_path) -> None:
    import onnx

    with pytest.raises(CheckpointError, match="no such file"):
        OnnxDecoder(tmp_path)
    for path in (exported / FOLDER_NAME).iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    graph = onnx.load(tmp_path / "add_tokens.onnx")
    for fact in graph.metadata_props:
        fact.value = "0" * 64 if fact.key == "tokenizer" else fact.value
    onnx.save(graph, tmp_path / "add_tokens.onnx")
    with pytest.raises(TokenError, match="another vocabulary"):
        OnnxDecoder(tmp_path)
    (tmp_path / "add_tokens.onnx").write_bytes(b"no graph")
    with pytest.raises(CheckpointError, match="cannot be read"):
        OnnxDecoder(tmp_path)
