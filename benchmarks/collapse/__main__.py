"""`python -m benchmarks.collapse`."""

from .command import main

if __name__ == "__main__":
    main()
