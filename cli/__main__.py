"""`python -P -m cli`: the `dledger` command where no console script is installed."""

from cli.main import main

main()
