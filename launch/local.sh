#!/usr/bin/env bash
# Train on this machine until it is done: a run that is killed goes on from its last checkpoint.
#
#   launch/local.sh [N] CONFIG WORKDIR [--config.train.steps=1000 ...]
#   launch/local.sh [N] --config=CONFIG --workdir=WORKDIR ...
#
# N processes share the run (1 if not given); where there are NVIDIA GPUs, each process has the one of its number.
# Ctrl-C and SIGTERM become a SIGTERM to every process, which writes a checkpoint and ends.
set -euo pipefail

n=1
if [[ ${1:-} =~ ^[1-9][0-9]*$ ]]; then
  n=$1
  shift
fi
if [[ $# -lt 2 || $1 == -h || $1 == --help ]]; then
  sed -n '2,8s/^# \{0,1\}//p' "$0"
  exit 2
fi
if [[ $1 == -* ]]; then
  flags=("$@")
else
  flags=("--config=$1" "--workdir=$2" "${@:3}")
fi
cd "$(dirname "$0")/.."

start_all() {
  pids=() together=()
  if ((n > 1)); then
    port=$(python -c 'import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])')
  fi
  for ((i = 0; i < n; i++)); do
    if ((n > 1)); then
      together=("--coordinator=localhost:$port" "--num_processes=$n" "--process_id=$i")
      if command -v nvidia-smi >/dev/null; then export CUDA_VISIBLE_DEVICES=$i; fi
    fi
    python -m biedsnet_jax.main "${flags[@]}" ${together[@]+"${together[@]}"} &
    pids+=($!)
  done
}

# Sets status: 0 where all ended well, else the code of the first to fail, after which the others are ended too.
wait_all() {
  status=0
  local left=("${pids[@]}") still pid code
  while ((${#left[@]})); do
    still=()
    for pid in "${left[@]}"; do
      if jobs -rp | grep -qx "$pid"; then
        still+=("$pid")
        continue
      fi
      code=0
      wait "$pid" || code=$?
      if ((code != 0 && status == 0)); then
        status=$code
        kill -KILL "${pids[@]}" 2>/dev/null || true # they would wait for it
      fi
    done
    left=(${still[@]+"${still[@]}"})
    ((${#left[@]} == 0)) || sleep 0.1
  done
}

stopping=0
trap 'stopping=1; kill -TERM "${pids[@]}" 2>/dev/null || true' INT TERM
for attempt in 1 2 3; do
  start_all
  wait_all
  # 137: SIGKILL, 139: a crash; anything else would only happen again.
  ((stopping == 0)) && [[ $status == 137 || $status == 139 ]] || exit "$status"
  echo "killed (exit $status), attempt $attempt of 3" >&2
done
exit "$status"
