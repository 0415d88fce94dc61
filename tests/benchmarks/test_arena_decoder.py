"""The baseline decoder: as large as it says, causal, cached exactly, a proper likelihood."""

import itertools
import math

import numpy as np
import pytest
import torch

from meloformer.benchmarks.arena_decoder import Decoder, DecoderConfig, as_large_as
from meloformer.benchmarks.arena_sampling import sample_decoder
from meloformer.benchmarks.bench_models import sized_config
from meloformer.errors import ConfigError
from meloformer.generation.sampling import SamplingConfig
from meloformer.model.counts import num_parameters

FIELDS = (7, 6, 5)
EOS = 2


def a_decoder(*, chained: bool = False, vocab_sizes: tuple[int, ...] = FIELDS) -> Decoder:
    torch.manual_seed(3)
    model = Decoder(
        DecoderConfig(
            num_layers=2,
            width=16,
            num_heads=2,
            ffn_width=20,
            vocab_sizes=vocab_sizes,
            chained=chained,
        )
    ).double()
    # Far from what it starts with, where everything is nearly uniform.
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def some_ids(num_tokens: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    fields = [torch.randint(V, (1, num_tokens), generator=generator) for V in FIELDS]
    return torch.stack(fields, dim=-1)


@pytest.mark.parametrize("chained", [False, True])
def test_the_formula_counts_every_parameter(chained) -> None:
    model = a_decoder(chained=chained)
    assert model.config.num_parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("size", ["tiny", "small", "base", "large"])
@pytest.mark.parametrize("vocab_sizes", [(855,), (260, 232, 128, 36, 132, 133, 69, 16)])
@pytest.mark.parametrize("chained", [False, True])
def test_a_decoder_has_as_many_parameters_as_museformer(size, vocab_sizes, chained) -> None:
    config = sized_config(size, 2048)
    wanted = num_parameters(config)
    found = as_large_as(config, wanted, vocab_sizes, chained)
    assert abs(found.num_parameters / wanted - 1) < 0.005
    assert (found.num_layers, found.width) == (config.num_layers, config.width)


def test_a_vocabulary_larger_than_the_model_is_refused() -> None:
    config = sized_config("tiny", 2048)
    with pytest.raises(ConfigError, match="allowed: a larger --model_size"):
        as_large_as(config, num_parameters(config), (20_000,), chained=False)


@pytest.mark.parametrize("chained", [False, True])
def test_a_later_token_changes_no_earlier_likelihood(chained) -> None:
    model, ids = a_decoder(chained=chained), some_ids(12)
    with torch.no_grad():
        before = model.nats(ids[:, :-1], ids[:, 1:])
        for place in range(1, 12):
            changed = ids.clone()
            changed[:, place] = (changed[:, place] + 1) % torch.tensor(FIELDS)
            after = model.nats(changed[:, :-1], changed[:, 1:])
            assert torch.equal(before[:, : place - 1], after[:, : place - 1])
            assert not torch.equal(before[:, place - 1 :], after[:, place - 1 :])


@pytest.mark.parametrize("chained", [False, True])
def test_likelihoods_of_all_next_tokens_sum_to_one(chained) -> None:
    """Every note with every field, and the end, which is said by the first field alone."""
    model, past = a_decoder(chained=chained), some_ids(4)
    notes = [n for n in itertools.product(*map(range, FIELDS)) if n[0] != EOS]
    nexts = torch.tensor([*notes, (EOS, -100, -100)])
    ids = past.expand(len(nexts), -1, -1)
    targets = torch.full_like(ids, -100)
    targets[:, -1] = nexts
    with torch.no_grad():
        probabilities = torch.exp(-model.nats(ids, targets)[:, -1].double())
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-6)
    assert probabilities.max() > 2 * probabilities.min(), "it is not uniform"


def test_chained_heads_read_the_fields_before_them_and_independent_ones_do_not() -> None:
    """Whether a field's probability depends on the note's earlier fields."""
    states = torch.randn(1, 16, dtype=torch.float64)
    for chained in (False, True):
        model = a_decoder(chained=chained)
        heads = [
            model.field_logits(states, 1, model.with_field(None, 0, torch.tensor([pitch])))
            for pitch in (3, 4)
        ]
        assert torch.equal(*heads) != chained


def test_a_model_without_weights_spends_what_a_uniform_guess_does() -> None:
    model, ids = a_decoder(), some_ids(6)
    for embedding in model.embeddings:
        torch.nn.init.zeros_(embedding.weight)
    with torch.no_grad():
        nats = model.nats(ids[:, :-1], ids[:, 1:]).sum().item()
    assert nats == pytest.approx(5 * sum(map(math.log, FIELDS)))


def test_one_token_at_a_time_computes_what_all_at_once_do() -> None:
    model, ids = a_decoder(), some_ids(9)
    caches = model.new_caches(9)
    with torch.no_grad():
        whole = model.states(ids)
        steps = [model.states(ids[:, t : t + 1], caches) for t in range(9)]
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, atol=1e-10, rtol=0)


def test_sampling_draws_what_the_parallel_model_finds_likely_and_stops_where_told() -> None:
    """Greedy sequences are those that the uncached model would go on with, rows leaving or not."""
    model = a_decoder(vocab_sizes=(9,))
    written = sample_decoder(
        model,
        3,
        SamplingConfig(temperature=0),
        seed=0,
        max_tokens=8,
        is_over=lambda ids: len(ids) > 6,
    )
    for ids in written:
        assert len(ids) == 6 or ids[-1, 0] == EOS
        with torch.no_grad():
            states = model.states(torch.from_numpy(ids[None, :-1]))
        likeliest = model.field_logits(states, 0, None).argmax(-1)[0].numpy()
        assert np.array_equal(ids[1:, 0], likeliest)
    seeds = [
        sample_decoder(model, 4, SamplingConfig(), seed=s, max_tokens=16, is_over=lambda ids: False)
        for s in (1, 1, 2)
    ]
    same, different = (
        [np.array_equal(*p) for p in zip(seeds[0], o, strict=True)] for o in seeds[1:]
    )
    assert all(same) and not all(different)
    assert len({len(ids) for ids in seeds[0]}) > 1, "rows end at different times"
