"""Imports of the libraries that a command works with."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def at_once() -> Iterator[None]:
    """Import modules within the block without looking for garbage in between, nor ever among them: they live as long as
    the program, and with PyTorch, Lightning and Transformers that takes a third of its start.

    It does nothing where PyTorch is there already, as then this may be a part of a program that runs on.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
