"""`python -m benchmarks.collapse`."""

from .training import main

if __name__ == "__main__":
    main()
