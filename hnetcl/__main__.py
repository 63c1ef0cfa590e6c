"""`python -m hnetcl train ...` is `hnetcl train ...`."""

from hnetcl.cli.commands import main

if __name__ == "__main__":
    main()
