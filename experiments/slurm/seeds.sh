#!/bin/bash
# Five seeds of one experiment as an array job of plain sbatch; arguments are those of fit. From the project's folder:
#   sbatch experiments/slurm/seeds.sh lora_r8 --config experiments/paper.yaml --config experiments/adapters/lora_r8.yaml
# More GPUs: sbatch --gpus-per-node=4 --ntasks-per-node=4 ... with --trainer.devices 4, since Lightning wants a task for
# each GPU. A grid of systems is more convenient with: moelora-ad sweep SWEEP.yaml --slurm
#SBATCH --array=1-5
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=40G
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=USR1@90
#SBATCH --open-mode=append
set -euo pipefail

system=${1:?give the name of the system, then the arguments of fit}
shift
seed=$SLURM_ARRAY_TASK_ID
above=${RUNS:-runs}
run=$above/$system/seed_$seed

# After a requeue the run goes on from its newest checkpoint; CSVLogger would delete the figures of earlier attempts.
resume=()
newest=$(ls -t "$run"/checkpoints/last*.ckpt 2>/dev/null | head -n 1 || true)
if [[ -n $newest ]]; then
  resume=("--ckpt_path=$newest")
fi
if [[ -e $run/metrics.csv ]]; then
  mv "$run/metrics.csv" "$run/metrics-$(date +%Y%m%d-%H%M%S).csv"
fi

place="\"save_dir\": \"$above\", \"name\": \"$system\", \"version\": \"seed_$seed\""
logger="{\"class_path\": \"lightning.pytorch.loggers.CSVLogger\", \"init_args\": {$place}}"

# SLURM sends the signal before the time limit to every process, the workers of a DataLoader too. So fit ignores it, and
# its main process alone is told to save and end; 75 then says that there is more to do.
task='
  (trap "" USR1; exec moelora-ad "$@") &
  fit=$!
  trap "up=1; kill -TERM $fit" USR1
  wait $fit && exit 0 || code=$?
  [[ -z ${up:-} ]] && exit $code
  wait $fit && exit 0
  exit 75
'
code=0
srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --kill-on-bad-exit=1 bash -c "$task" task fit "$@" \
  --seed_everything "$seed" --system "$system" \
  --trainer.default_root_dir="$run" --trainer.logger="$logger" "${resume[@]}" || code=$?
if [[ $code == 75 ]]; then
  exec scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
fi
exit $code
