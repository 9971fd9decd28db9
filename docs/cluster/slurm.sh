#!/bin/bash
# Repaint photos on several machines of a Slurm cluster: a Ray cluster for as long as one job. See docs/cluster.md.
#
#   sbatch slurm.sh
#
# Change the next lines, and the command further down. The job puts itself back into the queue before its time is over,
# and goes on; so it does when it is preempted.

#SBATCH --job-name=inst
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --no-kill
#SBATCH --open-mode=append
#SBATCH --output=inst-%j.log

set -euo pipefail

INST=/shared/inst  # a virtual environment that all machines see
PHOTOS=/shared/photos
STYLES=/shared/styles
OUT=/shared/results

export PATH="$INST/bin:$PATH"

# This script runs on the first machine, which becomes the head. Two jobs on one machine need ports and folders of their own.
head_address=$(hostname -I | cut -d ' ' -f 1)
export RAY_ADDRESS="$head_address:$((20000 + SLURM_JOB_ID % 10000))"
# Only processes that know this secret can use the cluster.
export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN

machine=(--num-cpus "$SLURM_CPUS_PER_TASK" --num-gpus "$SLURM_GPUS_ON_NODE" --disable-usage-stats --block)
step=(srun --overlap --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" --no-kill --wait=0)

"${step[@]}" --nodes=1 --ntasks=1 --nodelist="$SLURMD_NODENAME" \
    ray start --head --node-ip-address="$head_address" --port="${RAY_ADDRESS##*:}" \
    --temp-dir="/tmp/ray-$SLURM_JOB_ID" --include-dashboard=false "${machine[@]}" &
for _ in {1..60}; do
    ray health-check --address "$RAY_ADDRESS" 2> /dev/null && break
    sleep 1
done
if ((SLURM_NNODES > 1)); then
    others=$((SLURM_NNODES - 1))
    "${step[@]}" --nodes="$others" --ntasks="$others" --exclude="$SLURMD_NODENAME" \
        ray start --address="$RAY_ADDRESS" "${machine[@]}" &
fi

# With --concurrency, the work begins on the machines that are there, and the others join.
inst batch transfer --photos "$PHOTOS" --styles "$STYLES" --out "$OUT" \
    --address auto --num-gpus 1 --concurrency $((SLURM_NNODES * SLURM_GPUS_ON_NODE)) &
work=$!

again=
trap 'again=yes; kill -TERM "$work"' USR1  # the time is nearly over
code=0
wait "$work" || code=$?
if [[ -n $again ]]; then
    wait "$work" || true  # it completes what it writes
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
