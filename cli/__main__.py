"""`python -m cli` is `dualsd`."""

from cli.main import main

if __name__ == "__main__":
    main()
