"""Ctrl-C and SIGTERM: what they raise, and how they wait for what must not be cut in two."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_raised: list[int] = []
"""Signals that were raised as exceptions so far."""


class Interrupted(KeyboardInterrupt):
    """A signal asks the process to end.

    Not a plain KeyboardInterrupt: CPython remembers one that passed through `exec` of a text, as
    torch.fx and dataclasses call it, and under `python -m` kills the process by SIGINT at its end,
    even if the exception was caught (`unhandled_keyboard_interrupt` in Modules/main.c).
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)


def interrupted_exit_code() -> int:
    """The exit code of a process that an interrupt ends: 128 and its number, as shells say it."""
    return 128 + (_raised[-1] if _raised else signal.SIGINT)


def raise_interrupts() -> None:
    """Makes both signals raise `Interrupted`, except one that the parent process has ignored."""
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _raise)


def ignore_interrupts() -> None:
    """Makes both signals come too late: the work is done and its exit code stands."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def deferred_interrupts() -> Iterator[None]:
    """Holds both signals back to the end of the block: for what would be left half-done."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread gets signals
        return
    waiting: list[int] = []
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        for number, handler in handlers.items():
            if handler is not None:  # installed by Python, so that it can be put back
                signal.signal(number, lambda number, _: waiting.append(number))
        yield
    finally:
        for number, handler in handlers.items():
            if handler is not None:
                signal.signal(number, handler)
        if waiting:
            signal.raise_signal(waiting[0])


def num_interrupts() -> int:
    """How many interrupts were raised so far."""
    return len(_raised)


def raise_swallowed(since: int) -> None:
    """Raises an interrupt again that was swallowed, if there was one after the first `since`.

    An exception that comes while Python runs a finalizer or a weak reference's callback, as happens
    while torch traces, is printed and ignored.
    """
    if len(_raised) > since:
        raise Interrupted(_raised[-1])


def _raise(number: int, _: object) -> None:
    _raised.append(number)
    raise Interrupted(number)
