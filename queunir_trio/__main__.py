"""`python -m queunir_trio` is the command `queunir-trio`."""

from queunir_trio.cli.commands import main

if __name__ == "__main__":
    main()
