"""What each rank of a torchrun test does: python rank_runner.py CONFIG.yaml [RUN_TO_RESUME]."""

import sys
from pathlib import Path

from nextembed import run
from nextembed.errors import NextEmbedError

if __name__ == "__main__":
    config = run.from_yaml(run.RunConfig, Path(sys.argv[1]).read_text())
    try:
        run.fit(config, sys.argv[2] if len(sys.argv) > 2 else None)
    except NextEmbedError as err:
        print(f"{type(err).__name__}: {err}", file=sys.stderr)
        sys.exit(err.exit_code)
