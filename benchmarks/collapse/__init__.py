"""Which settings of SimCLRLoss and MoCoLoss train from scratch, and which collapse: short runs over a grid.

    python -m benchmarks.collapse --data cifar10 --device cuda --jobs 12 --seconds 100

`--data` holds train/CLASS/* and test/CLASS/*. A run trains the project's ResNet-18 of width 16 (stem `small`) and a
head 512-512-128 on a fixed pool of augmented views, without warm-up or schedule, and looks at it on the way. Axes:
loss (`LOSSES`), head (`HEADS`: where it has BatchNorm), batch, optimiser (`OPTIMIZERS`). A seed's runs are ordered by
the number of axes on which they leave the middle of the grid (the first value of each axis; a minor loss counts as
one), up to `--deviations`; `--seconds` starts no run after that time, and the file has what there is.

The JSON holds "what", "machine", "environment" (as benchmarks.results has them), "command", "settings" and "runs". A
run: its place on the axes, `framework`, `kappa` and `negatives_per_anchor`, `knn_untrained`, `knn`, `loss_end` and
`gradient_norm_end` (before the clip; means of the last ten steps), `gradient_norm_median` of all steps, `seconds`,
`graph` (steps replayed as a CUDA graph), and `looks`, one for each of some steps: mean `cosine` of all pairs of
projections of a batch that never changes, mean squared distances `d_positive`, `d_selected` (to the κ hardest
negatives) and `d_negative` (to all), `d_shares` (to the hardest share of the negatives, for `SHARES`), and the
criterion's `last_stats`. A run that failed has `error` instead.
"""
