"""`python -m psi_fast` is the command psi-fast."""

from psi_fast.cli import main

main()
