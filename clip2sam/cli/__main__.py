"""`python -m clip2sam.cli`."""

from clip2sam.cli.app import main

main()
