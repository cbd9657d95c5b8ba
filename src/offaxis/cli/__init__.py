"""The `offaxis` command. One short file a verb; each verb imports what it needs when it runs."""

from offaxis.cli.app import main

__all__ = ["main"]
