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
# Five minutes before its time is over the job is warned, saves and queues itself again; it goes on there. A job that is
# preempted or whose machine fails is queued again by SLURM. RUN lies in a folder that all machines see. Further
# arguments are settings: sbatch imagenet_slurm.sh --trainer.max_epochs 200
set -u

: "${DATA:?the folder of train/ and val/, or of shards}" "${RUN:?the folder of the run}"
RECIPE=${RECIPE:-simclr-imagenet1k-amcl}
PYTHON=${PYTHON:-python}

if [ -f "$RUN/config.yaml" ]; then
    how=(--resume "$RUN" --data "$DATA")
else
    how=(--recipe "$RECIPE" --data "$DATA" --run_dir "$RUN")
fi

# srun has not taken it from sbatch since SLURM 22.05.
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"
srun "$PYTHON" -m amcl_fast.cli pretrain "${how[@]}" --trainer.devices "$SLURM_NTASKS_PER_NODE" \
    --trainer.num_nodes "$SLURM_NNODES" --trainer.log_every_n_steps 10 "$@"
code=$?

# 128 + SIGUSR1: saved because of the warning. After scancel (SIGTERM) it stays stopped.
if [ "$code" = 138 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
