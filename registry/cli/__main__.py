"""`python -m registry.cli` is `loradock`."""

from registry.cli import main

main()
