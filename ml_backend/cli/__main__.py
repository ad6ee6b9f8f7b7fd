"""``python -m ml_backend.cli``: the same as `nextslice`."""

from ml_backend.cli import main

main()
