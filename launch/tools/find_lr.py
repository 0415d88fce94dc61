"""Find a learning rate: let it grow over a short run, and look where the loss falls and turns.

    python launch/tools/find_lr.py --data data_shards/<name>
    python launch/tools/find_lr.py --data data_shards/<name> --json lr.json        # and lr.png
    python launch/tools/find_lr.py --init_from runs/<name> --data data_shards/<other>
    python launch/tools/find_lr.py --device cpu --batch_size 2 --gradient_accumulation_steps 1
    torchrun --nproc_per_node 8 launch/tools/find_lr.py --data data_shards/<name> --num_steps 200

Give it the flags of the run: the rate depends on size, rows of an optimizer step and optimizer. It
trains --num_steps steps at most, stops when the smoothed loss has turned, and keeps nothing. The
suggestion is the lower of two rates: where the loss fell fastest, and a part of that at which it
turned. It rests on the first steps of one seed, with no warm-up: good to a factor of two or three,
and a long run may want less. Exit code 1 where the loss never fell.
"""

if __name__ == "__main__":  # before the imports that take seconds
    from meloformer.interrupts import end_at_signals

    end_at_signals()

import json
from dataclasses import asdict
from pathlib import Path

from meloformer.benchmarks.bench_tables import table_console
from meloformer.benchmarks.circumstances import circumstances
from meloformer.command_line import run_recipe
from meloformer.shards.download import without_credentials
from meloformer.training.find_lr import FindLRConfig, find_lr, open_test
from meloformer.training.leaving import leave_together
from meloformer.training.lr_curve import RateCurve, save_chart
from meloformer.training.session import Session

ROOT = Path(__file__).resolve().parents[2]


def main(flags: FindLRConfig) -> int:
    """Train, print, write."""
    console = table_console()
    with leave_together(), open_test(flags) as session:
        curve = find_lr(session, flags)
        title = title_of(session)
    if not session.ranks.is_first:
        return 0 if curve.suggest() else 1
    console.print(curve.table(title))
    found = curve.suggest()
    console.print(
        found.line()
        if found
        else f"no suggestion: the loss never fell clearly; lower --lowest {flags.lowest:g}, or "
        f"take more than --num_steps {flags.num_steps}",
        highlight=False,
        soft_wrap=True,
    )
    if flags.json:
        save(flags.json, session, curve, title)
        console.print(
            f"{flags.json} and {flags.json.with_suffix('.png').name}", highlight=False, markup=False
        )
    return 0 if found else 1


def title_of(session: Session) -> str:
    """Conditions in a line."""
    config = session.config
    rows = config.batch_size * config.gradient_accumulation_steps * session.ranks.world_size
    names = " ".join(Path(name).name for name in map(without_credentials, config.data))
    return (
        f"{names}, {config.model_size}, {rows} rows of up to {config.max_seq_len:,} tokens a step, "
        f"seed {config.seed}, {session.ranks.device.type}"
    )


def save(path: Path, session: Session, curve: RateCurve, title: str) -> None:
    """Write the curve and its picture."""
    facts = circumstances(session.ranks.device, ROOT) | {
        "title": title,
        "optimizer": asdict(session.config.optimizer),
        "world_size": session.ranks.world_size,
    }
    path.write_text(json.dumps(facts | curve.to_json(), indent=2) + "\n")
    save_chart(curve, path.with_suffix(".png"), title)


if __name__ == "__main__":
    run_recipe(main, FindLRConfig)
