"""Which settings of SimCLRLoss and MoCoLoss train from scratch, and which collapse; `python -m benchmarks.collapse`."""
