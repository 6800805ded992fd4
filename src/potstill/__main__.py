"""`python -m potstill`: the command line where the `potstill` script is not on the path."""

from potstill.cli import main

if __name__ == "__main__":
    main()
