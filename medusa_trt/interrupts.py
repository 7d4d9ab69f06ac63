"""Ctrl-C and SIGTERM: the exception that they raise, and blocks of code that they wait for."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_raised: list[int] = []
"""The signals for which an exception was raised so far."""


class Interrupted(KeyboardInterrupt):
    """A signal has asked the process to end.

    This is a subclass, because CPython remembers a plain KeyboardInterrupt that passed through
    `exec` of a text, which torch.fx and dataclasses call. Under `python -m` it then ends the
    process by SIGINT, even if the exception was caught (`unhandled_keyboard_interrupt` in
    Modules/main.c).
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)


def find_interrupt_code() -> int:
    """The exit code after an interrupt, as shells have it: 128 + the number of the signal."""
    return 128 + (_raised[-1] if _raised else signal.SIGINT)


def raise_interrupts() -> None:
    """Makes both signals raise `Interrupted`, unless the parent process made us ignore them."""
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _raise)


def ignore_interrupts() -> None:
    """Ignores both signals from now on: the work is done, and its exit code is known."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def defer_interrupts() -> Iterator[None]:
    """Delays both signals to the end of the block, which must not be left half-done."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Only the main thread gets signals.
        return
    waiting: list[int] = []
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        for number, handler in handlers.items():
            if handler is not None:  # Python installed it, and can put it back.
                signal.signal(number, lambda number, _: waiting.append(number))
        yield
    finally:
        for number, handler in handlers.items():
            if handler is not None:
                signal.signal(number, handler)
        if waiting:
            signal.raise_signal(waiting[0])


def count_interrupts() -> int:
    """Number of interrupts that were raised so far."""
    return len(_raised)


def raise_swallowed(since: int) -> None:
    """Raises the last interrupt again, if one was raised after the first `since`.

    Python prints and drops an exception that comes during a finalizer or the callback of a weak
    reference, as torch runs them while it traces: such an interrupt would be lost.
    """
    if len(_raised) > since:
        raise Interrupted(_raised[-1])


def _raise(number: int, _: object) -> None:
    _raised.append(number)
    raise Interrupted(number)
