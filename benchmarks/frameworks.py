"""`python -m benchmarks.frameworks`: the study that `benchmarks.measure.frameworks` describes."""

from .measure.frameworks import main

if __name__ == "__main__":
    main()
