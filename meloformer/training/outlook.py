"""What a run will do, said before it does it: rows, steps, tokens, memory, hours."""

from dataclasses import replace

import torch
from rich.table import Table

from meloformer.batches.phases import outlook_of_phases, too_short
from meloformer.model.counts import StepPairs, num_parameters, training_flops
from meloformer.model.memory import BatchSize
from meloformer.model.rules import describe_rule
from meloformer.progress import duration
from meloformer.training.building import count_moved, count_trained
from meloformer.training.cards import peak_flops
from meloformer.training.config import fuses
from meloformer.training.data import TrainData
from meloformer.training.freezing import describe_trained
from meloformer.training.memory import Partitioning, forecast
from meloformer.training.metrics import BYTES_PER_GIB
from meloformer.training.out_of_memory import total_bytes
from meloformer.training.prepare import Prepared

# Share of the data sheet's peak that the estimate of the hours counts on.
EXPECTED_MFU = 0.4


def outlook(prepared: Prepared) -> Table:
    """A table of what is about to happen."""
    config, ranks, plan = prepared.config, prepared.ranks, prepared.data.plan
    facts = prepared.data.epoch(0)
    trained, parameters = count_trained(config, prepared.model)
    table = Table(title=f"{config.output}", show_header=False, title_justify="left")
    rows = {
        "shards": "\n".join(describe_folders(prepared.data)),
        "model": f"{config.model_size}, {parameters:,} parameters, rule "
        f"{describe_rule(config.rule)}, {prepared.backend} attention"
        + (f"; {describe_trained(trained, parameters)}" if trained < parameters else ""),
        "ranks": f"{ranks.world_size} on {ranks.device.type}, ZeRO stage "
        f"{prepared.ds_config['zero_optimization']['stage']}, "
        f"{'bf16' if prepared.ds_config['bf16']['enabled'] else 'fp32'}",
        "step": f"{plan.global_batch} rows = {config.batch_size} x "
        f"{config.gradient_accumulation_steps} micro-steps x {ranks.world_size} ranks, up to "
        f"{plan.global_batch * plan.max_seq_len:,} tokens",
        "epoch": ("" if facts.counted == 1 else "about ")
        + f"{facts.num_steps:,} steps, {facts.num_rows:,} rows, {facts.num_windows:,} "
        f"windows, {facts.num_tokens:,} tokens, padding {facts.padding:.1%} ({config.collate})",
        "run": f"{prepared.num_steps:,} steps"
        + (f", {prepared.state.step:,} done" if prepared.state else ""),
        "phases": describe_phases(prepared),
        "memory per rank": predicted_memory(prepared),
        "time": estimated_time(prepared, facts.num_tokens / max(facts.num_steps, 1)),
    }
    for name, text in rows.items():
        table.add_row(name, text)
    return table


def describe_folders(data: TrainData) -> list[str]:
    """A line on each folder of --data: pieces, weight, and share of what an epoch takes."""
    weights = data.config.weights
    totals = [folder.manifest.total("train", "tokens") for folder in data.folders]
    taken = [total * weight for total, weight in zip(totals, weights, strict=True)]
    lines = []
    for number, folder in enumerate(data.folders):
        line = f"{folder.storage.name}: {folder.manifest.total('train', 'pieces'):,} pieces"
        if data.left_out and len(data.left_out[number]):
            line += f", {len(data.left_out[number]):,} of them left out"
        if weights != (1.0,):
            share = taken[number] / sum(taken)
            line += f", weight {weights[number]:g}, {share:.1%} of an epoch's tokens"
        lines.append(line)
    return lines


def describe_phases(prepared: Prepared) -> str:
    """Which steps are computed how."""
    config, num_steps = prepared.data.phases, prepared.num_steps
    if config.phases == "off":
        return "off"
    note = too_short(config, num_steps)
    return "\n".join([*outlook_of_phases(config, num_steps), *([note] if note else [])])


def predicted_memory(prepared: Prepared) -> str:
    """Peak of a rank by formula, what it consists of, and whether it fits the device in hand."""
    config, ranks, plan = prepared.config, prepared.ranks, prepared.data.plan
    trained, parameters = count_trained(config, prepared.model)
    partitioning = replace(
        Partitioning.of(prepared.ds_config, ranks.world_size),
        keeps_average=config.ema > 0,
        num_by_muon=count_moved(config, prepared.model),
        num_trained=trained,
        num_added=parameters - num_parameters(prepared.model),
    )
    size = BatchSize.of(
        config.batch_size,
        max(plan.row_lengths),
        # `auto` may find that fp32 is needed; the trial before step 1 measures what then comes.
        attention_bytes=4 if config.attention_precision == "fp32" else None,
        checkpointing=config.checkpointing,
        is_compiled=fuses(config.fuse, prepared.backend, partitioning.stage),
    )
    found = forecast(prepared.model, size, partitioning, ranks.device.type)
    total = total_bytes(ranks.device)
    allowed = total * config.memory_headroom
    verdict = "fits" if found.peak <= allowed else "does not fit"
    return (
        f"peak {found.describe()}, by formula; {verdict} {config.memory_headroom:.0%} of the "
        f"{total / BYTES_PER_GIB:.1f} GiB of {device_name(prepared)}"
        + (f"; checkpointing {config.checkpointing}" if config.checkpointing != "none" else "")
    )


def estimated_time(prepared: Prepared, tokens_per_step: float) -> str:
    """Time of the whole run where the device's peak is known; attention is left out."""
    peak = peak_flops(prepared.ranks.device)
    if peak is None:
        return f"known after the first steps (no data sheet for {device_name(prepared)})"
    summaries = tokens_per_step * prepared.data.bars_per_token
    flops = training_flops(
        prepared.model, int(tokens_per_step), int(summaries), StepPairs(update=0, summarize=0)
    )
    seconds = flops / (peak * EXPECTED_MFU * prepared.ranks.world_size) * prepared.num_steps
    return f"about {duration(seconds)} at {EXPECTED_MFU:.0%} MFU, attention left out"


def device_name(prepared: Prepared) -> str:
    """What computes, for people."""
    device = prepared.ranks.device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"this {device.type}"
