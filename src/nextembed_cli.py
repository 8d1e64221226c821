"""The `nextembed` command."""

import sys


def main() -> int:
    """Runs the command line and gives its exit code."""
    from nextembed.cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
