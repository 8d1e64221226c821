"""The `nextembed` command.

A module of its own: while it is loaded, `import nextembed` leaves out the models (and so torch, which takes
seconds), and a command loads what it needs. So `nextembed --help` and a mistyped option answer at once.
"""

import sys


def main() -> int:
    """Runs the command line and gives its exit code."""
    from nextembed.cli import main as run

    return run()


if __name__ == "__main__":
    sys.modules["nextembed_cli"] = sys.modules["__main__"]
    sys.exit(main())
