#!/usr/bin/env bash
# ImageNet-1k by torchrun, on one machine or several:
#
#   DATA=/data/imagenet RUN=/shared/runs/mine ./imagenet_torchrun.sh                                  # 1 × 8 GPUs
#   NODES=2 NODE=0 HEAD=host0:29500 DATA=/data/imagenet RUN=/shared/runs/mine ./imagenet_torchrun.sh  # 2 × 8, on host0
#   NODES=2 NODE=1 HEAD=host0:29500 DATA=/data/imagenet RUN=/shared/runs/mine ./imagenet_torchrun.sh  # and on the other
#
# Given again, the same commands go on with a run that was stopped. Where a process dies, torchrun starts all of them
# again up to RESTARTS times, and they go on from the last checkpoint; the other machines wait for one that is taken away
# to be there again. RUN must lie in a folder that all machines see. DATA may be a copy on each. Further arguments are
# settings: --trainer.max_epochs 200
set -eu

: "${DATA:?the folder of train/ and val/, or of shards}" "${RUN:?the folder of the run}"
RECIPE=${RECIPE:-simclr-imagenet1k-amcl}
NODES=${NODES:-1}   # machines
NODE=${NODE:-0}     # this one, from 0
GPUS=${GPUS:-8}     # of each
PYTHON=${PYTHON:-python}

if [ "$NODES" = 1 ]; then
    where=(--standalone)
else
    : "${HEAD:?HOST:PORT of machine 0}"
    where=(--nnodes "$NODES" --node_rank "$NODE" --master_addr "${HEAD%:*}" --master_port "${HEAD##*:}")
fi

# torchrun gives its processes 30 s after a SIGTERM, in which a step must end and be saved.
exec "$PYTHON" -m torch.distributed.run "${where[@]}" --nproc_per_node "$GPUS" --max-restarts "${RESTARTS:-3}" \
    -m amcl_fast.cli pretrain --recipe "$RECIPE" --data "$DATA" --run_dir "$RUN" --resume auto \
    --trainer.devices "$GPUS" --trainer.num_nodes "$NODES" "$@"
