"""The commands `medusa-trt` (also `python -m medusa_trt`) and `medusa-export`.

All other modules are imported after the signals have their handlers, so that a Ctrl-C at any moment
ends in one line and an exit code, and leaves nothing half-written.
"""

import sys

from medusa_trt.interrupts import find_interrupt_code, ignore_interrupts, raise_interrupts


def main() -> int:
    """Runs `medusa-trt`; returns the exit code."""
    return _run("main")


def export_main() -> int:
    """Runs `medusa-export`; returns the exit code."""
    return _run("export_main")


def _run(name: str) -> int:
    """Runs a function of `cli/main.py` as the whole work of this process.

    Signals after its end are ignored.
    """
    try:
        raise_interrupts()
        try:
            from medusa_trt.cli import main as cli

            code: int = getattr(cli, name)()
        finally:
            ignore_interrupts()
    except KeyboardInterrupt:
        ignore_interrupts()
        print("interrupted", file=sys.stderr)
        return find_interrupt_code()
    return code


if __name__ == "__main__":
    sys.exit(main())
