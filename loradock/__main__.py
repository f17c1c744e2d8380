"""`python -P -m loradock` is `loradock`; without -P, Python imports what the working directory has first."""

from loradock.cli import main

main()
