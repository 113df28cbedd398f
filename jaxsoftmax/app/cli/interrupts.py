"""Ctrl-C: it ends a command in one line, and a fit with its result.

This module is imported before all others, so that it imports little itself.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

EXIT_STATUS = 130  # the status that a shell gives a command that Ctrl-C ended
MESSAGE = "jaxsoftmax: interrupted, nothing was saved"


def _end_process(signal_number: int, frame: object) -> None:
    os.write(2, f"{MESSAGE}\n".encode())
    os._exit(EXIT_STATUS)


def end_process() -> None:
    """Let Ctrl-C end the process at once, unless it is ignored, as under nohup.

    While modules are imported, a KeyboardInterrupt might get lost, or become an ImportError.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end_process)


@contextmanager
def raise_exceptions() -> Iterator[None]:
    """Let Ctrl-C raise a KeyboardInterrupt in this context, the work of a command.

    The command is over with this context: what it has said remains true, and Ctrl-C is ignored.
    """
    if signal.getsignal(signal.SIGINT) is not _end_process:
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


class Interrupts:
    """The number of interrupts that came, and whether the next one ends the fit at once.

    Once the fit has a result to keep, the first interrupt lets the epoch under way end, and the
    second ends the fit at once. Before that, the first interrupt ends the fit at once. When the fit
    has ended and its result is saved, interrupts are only counted.
    """

    def __init__(self) -> None:
        self.count = 0
        self._is_fitting = False
        self._has_result = False

    @contextmanager
    def during_fit(self) -> Iterator[None]:
        """Let interrupts end the fit in this context, by a KeyboardInterrupt."""
        self._is_fitting = True
        try:
            self.check()
            yield
        finally:
            self._is_fitting = False

    def check(self, *, has_result: bool = False) -> None:
        """Raise a KeyboardInterrupt if an interrupt came.

        The callback of a fit calls this. It also finds an interrupt whose exception is lost, since
        Python ignores exceptions in finalizers and in callbacks of the garbage collector.

        Args:
            has_result: whether the fit has a result that is kept if it ends now.
        """
        self._has_result |= has_result
        if self.count:
            self._end_fit()

    def _handle(self, signal_number: int, frame: object) -> None:
        self.count += 1
        if self._is_fitting and (self.count > 1 or not self._has_result):
            self._end_fit()

    def _end_fit(self) -> None:
        self._is_fitting = False  # the next interrupt must not lose the result
        raise KeyboardInterrupt


@contextmanager
def handle_interrupts() -> Iterator[Interrupts]:
    """Handle Ctrl-C by `Interrupts` in this context, unless it is ignored, as under nohup."""
    interrupts, previous = Interrupts(), signal.getsignal(signal.SIGINT)
    if previous is not signal.default_int_handler:
        yield interrupts
        return
    signal.signal(signal.SIGINT, interrupts._handle)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, previous)
