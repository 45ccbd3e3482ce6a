"""`python -m continuad` is `continuad`."""

from continuad.cli import main

if __name__ == "__main__":
    main()
