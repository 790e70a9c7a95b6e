"""Benchmarks: one registry of cases for CPU and GPU, and what measures, checks and reports them.

Installed as `amcl_fast.benchmarks`; `amcl-fast bench` runs it, and `python -m benchmarks.gpu` in a checkout.
"""
