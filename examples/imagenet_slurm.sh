#!/usr/bin/env bash
#SBATCH --job-name=imagenet
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#
# ImageNet-1k under SLURM, one task a GPU:
#
#   DATA=/data/imagenet RUN=/shared/runs/mine sbatch imagenet_slurm.sh
#
# Five minutes before its time is over the job is warned, saves and queues itself again: the same command goes on. A job
# that is preempted or whose machine fails is queued again by SLURM. After scancel it stays stopped. RUN lies in a folder
# that all machines see. Further arguments are settings: sbatch imagenet_slurm.sh --trainer.max_epochs 200
set -u

: "${DATA:?the folder of train/ and val/, or of shards}" "${RUN:?the folder of the run}"
RECIPE=${RECIPE:-simclr-imagenet1k-amcl}
PYTHON=${PYTHON:-python}

# srun has not taken it from sbatch since SLURM 22.05.
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"
# One that fails ends the others, which would wait for it.
export SLURM_KILL_BAD_EXIT=1
exec srun "$PYTHON" -m amcl_fast.cli pretrain --recipe "$RECIPE" --data "$DATA" --run_dir "$RUN" --resume auto \
    --trainer.devices "$SLURM_NTASKS_PER_NODE" --trainer.num_nodes "$SLURM_NNODES" "$@"
