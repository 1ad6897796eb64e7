#!/usr/bin/env bash
# Trains on this machine until it is done: a run that is killed goes on from its last checkpoint.
#
#   launch/local.sh [N] CONFIG WORKDIR [--config.train.steps=1000 ...]
#   launch/local.sh [N] --config=CONFIG --workdir=WORKDIR ...
#
# N processes share the run (1 if not given). Where there are NVIDIA GPUs, each process has one of
# its own: the first N of CUDA_VISIBLE_DEVICES if it is set, else those numbered from 0. Paths
# start at the folder you are in; a CONFIG may also be a name, such as phantom:unet. Ctrl-C,
# SIGTERM and SIGHUP become a SIGTERM to every process, which writes a checkpoint and ends.
# Exit code: 0 done or stopped, 2 wrong arguments, else that of the first process to fail.
set -euo pipefail

refuse() {
  echo "launch: $*" >&2
  exit 2
}

n=1
if [[ ${1:-} =~ ^[0-9]+$ ]]; then
  ((10#$1 > 0)) || refuse "N is $1, the number of processes. Give 1 or more."
  n=$((10#$1))
  shift
fi
if [[ $# -lt 2 || $1 == -h || $1 == --help ]]; then
  sed -n '2,12s/^# \{0,1\}//p' "$0"
  exit 2
fi
if [[ $1 == -* ]]; then
  flags=("$@")
else
  flags=("--config=$1" "--workdir=$2" "${@:3}")
fi
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# The package beside this script, whatever lies in the folder you are in.
export PYTHONPATH=$project${PYTHONPATH:+:$PYTHONPATH} PYTHONSAFEPATH=1

# The names of the devices given: numbers, GPU-... or MIG-... CUDA stops at the first name that
# cannot be a device, so that -1 or NoDevFiles hides all.
gpus=()
if ((n > 1)) && [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then
  IFS=, read -ra gpus <<<"${CUDA_VISIBLE_DEVICES//[[:space:]]/}"
  for i in "${!gpus[@]}"; do
    if [[ ! ${gpus[i]} =~ ^([0-9]+|GPU-.+|MIG-.+)$ ]]; then
      gpus=(${gpus[@]+"${gpus[@]:0:i}"})
      break
    fi
  done
  ((${#gpus[@]} == 0 || n <= ${#gpus[@]})) ||
    refuse "N is $n, and CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES names ${#gpus[@]}." \
      "Start ${#gpus[@]} or fewer."
elif ((n > 1)) && command -v nvidia-smi >/dev/null; then
  there=$(nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU ' || true)
  ((there == 0 || n <= there)) ||
    refuse "N is $n, and this machine has $there GPUs. Start $there or fewer."
  for ((i = 0; i < n; i++)); do gpus+=("$i"); done
fi

start_all() {
  pids=() together=()
  if ((n > 1)); then
    port=$(python -c 'import socket
s = socket.socket()
s.bind(("localhost", 0))
print(s.getsockname()[1])')
  fi
  for ((i = 0; i < n; i++)); do
    if ((n > 1)); then
      together=("--coordinator=localhost:$port" "--num_processes=$n" "--process_id=$i")
      if ((${#gpus[@]})); then export CUDA_VISIBLE_DEVICES=${gpus[i]}; fi
    fi
    python -m biedsnet_jax.main "${flags[@]}" ${together[@]+"${together[@]}"} &
    pids+=($!)
  done
  # A signal that came in between has not reached them all.
  ((stopping == 0)) || kill -TERM "${pids[@]}" 2>/dev/null || true
}

# Sets status: 0 where all ended well, else the code of the first to fail. The others are ended
# then, since they would wait for it.
wait_all() {
  status=0
  local left=("${pids[@]}") still pid code
  while ((${#left[@]})); do
    still=()
    for pid in "${left[@]}"; do
      # Not `jobs | grep`: a signal to the group ends that, and both look as if nothing ran.
      # Bash reaps what has ended, so that the number is gone.
      if kill -0 "$pid" 2>/dev/null; then
        still+=("$pid")
        continue
      fi
      code=0
      wait "$pid" || code=$?
      if ((code != 0 && status == 0)); then
        status=$code
        kill -KILL "${pids[@]}" 2>/dev/null || true
      fi
    done
    left=(${still[@]+"${still[@]}"})
    # Ctrl-C in a terminal ends the sleep too, which must not leave the processes behind.
    ((${#left[@]} == 0)) || sleep 0.1 || true
  done
}

stopping=0
trap 'stopping=1; kill -TERM "${pids[@]}" 2>/dev/null || true' INT TERM HUP
for attempt in 1 2 3; do
  start_all
  wait_all
  # 137 is SIGKILL, 139 a crash; any other failure would only happen again.
  ((stopping == 0)) && [[ $status == 137 || $status == 139 ]] || exit "$status"
  echo "killed (exit $status), attempt $attempt of 3" >&2
done
exit "$status"
