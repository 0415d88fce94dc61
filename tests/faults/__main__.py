"""Play the faults that a run of days must bear, on real processes, and print one row for each.

make test-faults
python -m tests.faults --only kill disk --seed 7 --json faults.json
"""

import argparse
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.conftest import chorale_folder
from tests.faults.table import faults_of, markdown, play, save_json


def main() -> int:
    """Parse, play, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=[], help="rows whose name or words hold this")
    parser.add_argument("--seed", type=int, help="of the moments that are drawn; random if absent")
    parser.add_argument("--json", type=Path, help="file for the rows as well")
    parser.add_argument("--shards", type=Path, help="shard folder; chorales if absent")
    parser.add_argument("--output", type=Path, help="new folder for the runs; a passing one if not")
    wanted = parser.parse_args()
    # What was started ends with this process, however it is asked to end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped by SIGTERM"))
    try:
        faults = faults_of(wanted.only)
    except ValueError as error:
        parser.error(str(error))
    seed = random.randrange(10_000) if wanted.seed is None else wanted.seed
    shards = wanted.shards.resolve() if wanted.shards else chorale_folder()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        output = wanted.output.resolve() if wanted.output else Path(folder)
        print(f"{len(faults)} faults, --seed {seed}, runs in {output}", flush=True)
        rows = play(faults, shards, output, seed, lambda line: print(line, flush=True))
    print(f"\n{markdown(rows)}\n\n{len(rows)} rows, {(time.monotonic() - began) / 60:.0f} minutes")
    if wanted.json:
        save_json(wanted.json, rows, seed)
    return int(any(row.outcome.startswith("FAIL") for row in rows))


if __name__ == "__main__":
    sys.exit(main())
