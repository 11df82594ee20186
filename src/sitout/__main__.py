"""The command ``sitout``; ``python -m sitout`` is the same."""

from ._optional import needs_or_exit


def main() -> None:
    """Run the command line."""
    try:
        with needs_or_exit("cli", "The command sitout"):
            from .cli import app
        app()
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
