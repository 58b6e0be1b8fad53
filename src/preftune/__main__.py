"""`python -m preftune` is the same as `preftune`."""

from preftune.cli import main

if __name__ == "__main__":
    main()
