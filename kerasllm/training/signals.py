"""Ctrl-C and SIGTERM as a wish that is granted between two steps."""

import signal
import sys
import threading
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Notes the first Ctrl-C or SIGTERM; a second one acts at once, as it would without this.

    Attributes:
        signal: The signal that came, or None.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def install(self) -> None:
        """Listen, from the main thread; a signal that is ignored (by `nohup`, for example) stays so."""
        if threading.current_thread() is not threading.main_thread() or self._before:
            return
        self.signal = None
        for number in _SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                self._before[number] = signal.signal(number, self._note)

    def uninstall(self) -> None:
        """Put back what listened before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def obey(self) -> None:
        """End the program as the signal would have: KeyboardInterrupt (exit code 130), or exit code 143."""
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        if self.signal is not None:
            sys.exit(128 + self.signal)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self.uninstall()
        print("Stopping after this step; once more to stop at once.", file=sys.stderr, flush=True)
