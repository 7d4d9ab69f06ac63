"""The commands `medusa-trt` (also `python -m medusa_trt`) and `medusa-export`.

Nothing heavy is imported before signals are taken care of, so that a Ctrl-C at any moment ends in
one line and an exit code, and leaves nothing half-written.
"""

import sys
from collections.abc import Callable

from medusa_trt.interrupts import ignore_interrupts, interrupted_exit_code, raise_interrupts


def main() -> int:
    """Runs `medusa-trt`; returns the exit code."""

    def command() -> int:
        from medusa_trt.cli import main as cli

        return cli.main()

    return _ended(command)


def export_main() -> int:
    """Runs `medusa-export`; returns the exit code."""

    def command() -> int:
        from medusa_trt.cli import main as cli

        return cli.export_main()

    return _ended(command)


def _ended(command: Callable[[], int]) -> int:
    """Runs a command in a process of its own: from its return on, signals come too late."""
    try:
        raise_interrupts()
        try:
            code = command()
        finally:
            ignore_interrupts()
    except KeyboardInterrupt:
        ignore_interrupts()
        print("interrupted", file=sys.stderr)
        return interrupted_exit_code()
    return code


if __name__ == "__main__":
    sys.exit(main())
