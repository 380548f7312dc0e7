"""`python -m hf_lam.cli`."""

from . import main

main()
