"""`python -m udl_dist` is `udl`."""

from udl_dist.cli import main

main()
