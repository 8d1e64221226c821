"""Keeps libraries from printing, and bitsandbytes from downloading a kernel."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from logging import ERROR, getLogger

from transformers.utils import logging


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """transformers shows no bar while it reads or writes weights, nor its table of missing weights."""
    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def import_bitsandbytes() -> None:
    """Imports bitsandbytes, if it is installed, without the kernel that it would download from the hub and run on some
    CPUs, and without its message. To be called before anything else imports it, such as peft."""
    if "bitsandbytes" in sys.modules or find_spec("bitsandbytes") is None:
        return
    getLogger("bitsandbytes").setLevel(ERROR)
    kernels = sys.modules.get("kernels")
    sys.modules["kernels"] = None  # type: ignore[assignment]  # importing it is an ImportError then
    try:
        with suppress(Exception):  # if it does not work here, this is reported where it is needed
            import_module("bitsandbytes")
    finally:
        del sys.modules["kernels"]
        if kernels is not None:
            sys.modules["kernels"] = kernels
