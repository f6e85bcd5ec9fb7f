"""`python -m turret_client` is the `turret` command."""

from turret_client.cli import main

main()
