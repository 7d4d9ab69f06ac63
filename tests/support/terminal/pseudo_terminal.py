"""A terminal of a given width, in which a test runs a command."""

import fcntl
import os
import struct
import subprocess
import termios
from collections.abc import Sequence


def run_in_terminal(command: Sequence[str], columns: int) -> str:
    """Runs a command whose output is a terminal of this width; returns what it wrote there."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    process = subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    written = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # EIO: the command has ended.
            break
        if not part:
            break
        written += part
    os.close(ours)
    assert process.wait() == 0, written.decode()
    return written.decode()
