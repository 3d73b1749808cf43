"""`python -m phenomhpc` is the command `phenomhpc`."""

from phenomhpc.cli.main import main

main()
