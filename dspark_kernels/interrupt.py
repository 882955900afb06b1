"""Ctrl-C where work is to end well."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interrupt_held_back() -> Iterator[threading.Event]:
    """An event which Ctrl-C sets instead of breaking off what runs; a second Ctrl-C breaks it off.

    Only where Ctrl-C would raise KeyboardInterrupt: in the main thread, under Python's own handler.
    """
    pressed, before = threading.Event(), signal.getsignal(signal.SIGINT)
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or before is not signal.default_int_handler:
        yield pressed
        return

    def press(*_):
        pressed.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, press)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)
