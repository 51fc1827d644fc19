"""`python -m roadworthy.cli`."""

from roadworthy.cli import main

if __name__ == "__main__":
    main()
