"""What a bridge's training will do, as a table, before it does it."""

from rich.table import Table
from torch import nn

from meloformer.bridge_training.prepare import PreparedBridge
from meloformer.training.schedule import resolve_warmup_steps


def outlook(prepared: PreparedBridge) -> Table:
    """Data, model and steps of a run."""
    flags, base, encoder = prepared.flags, prepared.facts.base, prepared.facts.encoder
    layer = prepared.facts.layer
    assert isinstance(prepared.bridge, nn.Module)
    counts = {
        name: sum(p.numel() for p in module.parameters() if p.requires_grad)
        for name, module in prepared.bridge.named_children()
    }
    total = sum(p.numel() for p in prepared.bridge.parameters() if p.requires_grad)
    projection = counts.get("projection", 0)
    warmup_steps = resolve_warmup_steps(prepared.num_steps, flags.schedule)
    bridge = prepared.facts.extra.get("bridge")
    rows = {
        "to train": prepared.facts.model_type
        + (f", for the {bridge['model_type']} {bridge['fingerprint'][:12]}" if bridge else ""),
        "parameters to train": f"{total - projection:,}"
        + (f" and {projection:,} of the projection" if projection else ""),
        "text encoder": f"{encoder['name']}, width {encoder['width']}",
        "base": f"{base['fingerprint'][:12]}, width {base['width']}, {base['num_layers']} layers",
        "answers enter": f"after layer {layer}" if layer else "at the input, a soft prompt",
        "training windows": f"{len(prepared.train):,} of {len(prepared.train.targets):,}, with "
        f"{prepared.train.num_texts:,} texts",
        "validation windows": f"{len(prepared.valid):,} of {len(prepared.valid.targets):,}",
        "rows per step": f"{prepared.run.global_batch} over {prepared.ranks.world_size} rank(s)",
        "steps": f"{prepared.num_steps:,}, the first {warmup_steps:,} of them to warm up",
        "epochs": f"{prepared.num_steps * prepared.run.global_batch / len(prepared.train):.1f}",
        "device": f"{prepared.ranks.device}, {flags.config}",
        "output": str(prepared.output),
    }
    if prepared.state:
        rows["goes on after step"] = f"{prepared.state.step:,}"
    table = Table(show_header=False)
    for name, value in rows.items():
        table.add_row(name, value)
    return table
