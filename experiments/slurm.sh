#!/usr/bin/env bash
# Trains on the GPUs of several machines under SLURM. A job whose time is over while it trains is queued again by itself
# and goes on; one that is still preparing, or already judging, ends.
#
#   sbatch --nodes 2 --gpus-per-node 8 --ntasks-per-node 8 experiments/slurm.sh --out runs/mine --data llava:train.json
#
# One task is one process on one GPU. --out is needed: it is where the run continues. Other settings of your cluster
# (account, partition, memory) go on the command line of sbatch as well. The environment in which beni is installed must
# be active, and --out, the data and the caches must lie where all machines see them.
#SBATCH --job-name=beni
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --time=24:00:00
#SBATCH --cpus-per-task=8
#SBATCH --requeue
#SBATCH --signal=TERM@300
# The line above: SIGTERM comes five minutes before the end. The run then saves a checkpoint and ends with code 75.
set -uo pipefail

case " $* " in
  *" --out "* | *" --out="*) ;;
  *) echo "slurm.sh: name the run's folder with --out, so that it can be continued" >&2; exit 2 ;;
esac

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export MASTER_ADDR MASTER_PORT
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}" # srun has stopped to take it over from sbatch
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}"

# Processes that outlive a lost one need a moment to say which one it was, before srun ends them.
srun --kill-on-bad-exit=0 --wait=120 bash -c '
  export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
  exec beni train "$@" --resume auto
' beni "$@"
code=$?

if [ "$code" -eq 75 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
