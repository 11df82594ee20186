"""The command ``sitout``; ``python -m sitout`` is the same."""

import errno
import os
import sys

from ._optional import needs_or_exit


def main() -> None:
    """Run the command line."""
    try:
        with needs_or_exit("cli", "The command sitout"):
            from .cli import app
        app()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # there Python writes the rest at its end
        sys.stderr.write("sitout: The disk is full. Free some space, and run the command again.\n")
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
