"""`python -m lmjax` is `lmjax`."""

from lmjax.cli import main

main()
