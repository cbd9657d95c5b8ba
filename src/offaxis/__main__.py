"""`python -m offaxis` is the `offaxis` command."""

from offaxis.cli import main

main()
