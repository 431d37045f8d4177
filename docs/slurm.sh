#!/usr/bin/env bash
# moesaic on the GPUs of several hosts under Slurm: one task a GPU, rank 0 drives the pipeline and the others follow.
#
#   sbatch --nodes 2 docs/slurm.sh model=qwen3_30b_a3b collect=synthetic place.redundant_experts=16
#
# What follows the script are the overrides of `moesaic run`. The folder that the job is submitted from holds the runs,
# the tracking store and the journals, so that the same command goes on after a failure: all hosts must see it.
#SBATCH --job-name=moesaic
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --output=moesaic-%j.log
set -euo pipefail

nodes=${SLURM_JOB_NUM_NODES:?start this with sbatch, or within salloc}
tasks=${SLURM_NTASKS:?the number of tasks is not known: give --ntasks-per-node}

# Ranks count host by host, as topology does; each task picks its own of the GPUs that all tasks of a host see.
exec srun --distribution=block --gpu-bind=none --kill-on-bad-exit=1 \
    moesaic run "topology.nodes=$nodes" "topology.gpus_per_node=$((tasks / nodes))" "$@"
