"""The command line: it takes a recipe and settings, and ends with an exit code and one clear line.

Exit codes: 0 fine, 1 failed while running, 2 wrong settings or usage, 130 stopped with Ctrl-C (and saved).
One module for each group of commands; every command imports what it needs itself, so that --help and usage errors
answer at once.
"""

# Importing registers them; --help lists them in this order.
from . import train, compare, plan, evaluate, shard, features, search  # noqa: F401, I001
from . import generate, sample, chat, visualize, studio, export, share, doctor  # noqa: F401
from .app import app, main

__all__ = ["app", "main"]
