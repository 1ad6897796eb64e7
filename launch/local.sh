#!/usr/bin/env bash
# Train on this machine, on all its devices, until it is done: a run that is killed goes on from its last checkpoint.
#
#   launch/local.sh configs/phantom.py runs/phantom [--config.train.steps=1000 ...]
set -euo pipefail

if [[ $# -lt 2 || $1 == -h || $1 == --help ]]; then
  sed -n '2,4s/^# \{0,1\}//p' "$0"
  exit 2
fi
config=$1 workdir=$2
shift 2

cd "$(dirname "$0")/.."
for attempt in 1 2 3; do
  status=0
  python -m biedsnet_jax.main --config="$config" --workdir="$workdir" "$@" || status=$?
  # 137: SIGKILL, 139: a crash; anything else would only happen again.
  [[ $status == 137 || $status == 139 ]] || exit "$status"
  echo "killed (exit $status), attempt $attempt of 3" >&2
done
exit "$status"
