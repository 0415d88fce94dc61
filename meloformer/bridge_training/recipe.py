"""What the recipes of all bridges do with their flags."""

from collections.abc import Callable

from rich.console import Console

from meloformer.bridge_training.loop import train
from meloformer.bridge_training.outlook import outlook
from meloformer.bridge_training.prepare import PreparedBridge
from meloformer.training.leaving import leave_together


def prepare_and_train(prepare: Callable[[], PreparedBridge]) -> int:
    """Settle every setting, say what will be done, train; all ranks end together.

    Args:
        prepare: settles the settings, or refuses.

    Returns:
        Exit status of this process.
    """
    with leave_together():
        prepared = prepare()
        if prepared.ranks.is_first:
            Console().print(outlook(prepared))
        if prepared.flags.dry_run or prepared.is_done:
            return 0
        return train(prepared)
