#!/usr/bin/env bash
# Trains on a Cloud TPU VM, or on a slice of many hosts: the same commands for both.
#
#   launch/tpu_vm.sh create     make a spot slice: cheap, may be taken away at any time
#   launch/tpu_vm.sh install    copy this folder and install its requirements, on every worker
#   launch/tpu_vm.sh run configs/covid.py runs/covid [flags ...]
#                               train on every worker; ends when training does
#   launch/tpu_vm.sh delete     delete the slice and its disks
#
# If the slice is taken away: `create`, `install`, `run` again, and training goes on from its
# checkpoint. So WORKDIR and the data must lie on a disk or share that outlives the slice, mounted
# on every worker at the same place (such as Filestore). Needs gcloud, signed in. Set by the
# environment:
#   NAME=biedsnet ZONE=us-west4-a VERSION=v2-alpha-tpuv5-lite
#   TYPE=v5litepod-8 (one host; v5litepod-16 and up: several)
set -euo pipefail
name=${NAME:-biedsnet} zone=${ZONE:-us-west4-a}
type=${TYPE:-v5litepod-8} version=${VERSION:-v2-alpha-tpuv5-lite}

tpu() { gcloud compute tpus tpu-vm "$@" --zone="$zone"; }
everywhere() { tpu ssh "$name" --worker=all --command="$1"; }

case ${1:-} in
  create) tpu create "$name" --accelerator-type="$type" --version="$version" --spot ;;
  install)
    archive=$(mktemp)
    trap 'rm -f "$archive"' EXIT
    git -C "$(dirname "$0")/.." archive --format=tar.gz --output="$archive" HEAD # what is committed
    tpu scp "$archive" "$name:biedsnet.tar.gz" --worker=all
    # The image's Python is too old: uv brings a newer one.
    everywhere 'mkdir -p biedsnet && tar -xzf biedsnet.tar.gz -C biedsnet &&
      python3 -m pip install --quiet --user uv && .local/bin/uv venv --clear --python=3.12 venv &&
      .local/bin/uv pip install --quiet --python=venv "jax[tpu]" -r biedsnet/requirements.txt'
    ;;
  run)
    config=${2:?the config, such as configs/covid.py} workdir=${3:?the workdir, on a shared disk}
    printf -v flags ' %q' "--config=$config" "--workdir=$workdir" "${@:4}"
    everywhere "cd biedsnet && ../venv/bin/python -m biedsnet_jax.main$flags"
    ;;
  delete) tpu delete "$name" --quiet ;;
  *) sed -n '2,15s/^# \{0,1\}//p' "$0" && exit 2 ;;
esac
