"""The `nextembed` command."""

import sys


def main() -> int:
    """Runs the command line and gives its exit code."""
    try:
        from nextembed.cli import main as run
    except ModuleNotFoundError as err:
        if err.name is None or err.name.partition(".")[0] == "nextembed":
            raise
        print(f"nextembed: the package {err.name} is missing here: pip install {err.name}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # from here on, `run` answers it
        print("nextembed: stopped", file=sys.stderr)
        return 130
    return run()


if __name__ == "__main__":
    sys.exit(main())
