"""Benchmarks: one registry of cases for CPU and GPU, and what checks them, measures them and shows the results.

Installed as `amcl_fast.benchmarks`; `amcl-fast bench` runs it, and `python -m benchmarks.gpu` in a checkout.

- `cases`, `peers`: what is measured, and what runs beside it; `ours`, `dense`: amcl_fast and PyTorch for a case.
- `check`, `step`, `timing`, `memory`: one implementation of a case, right or not, how fast, how large.
- `measure`: the sections of `amcl-fast bench`, and `frameworks`, a study of training; `show`: tables, plots and pages.
- `results`, `compare`: the JSON of a machine; two of them, or two commits.
- `gpu`: the command for a machine with a GPU; `collapse`: studies of training; `frameworks` starts that of `measure`.
"""
