#!/usr/bin/env bash
# Trains on a Cloud TPU VM, or on a slice of many hosts: the same commands for both.
#
#   launch/tpu_vm.sh create          make a spot slice: cheap, may be taken away at any time
#   launch/tpu_vm.sh install         copy this folder, with your edits, and install what it needs,
#                                    on every worker
#   launch/tpu_vm.sh data DIR        copy a data folder to every worker:
#                                    --config.data.root=data/NAME of DIR
#   launch/tpu_vm.sh run configs/covid.py runs/covid [flags ...]
#                                    train on every worker, and show the log of the first
#   launch/tpu_vm.sh logs            show the log again
#   launch/tpu_vm.sh stop            write a checkpoint and end the run
#   launch/tpu_vm.sh fetch runs/covid [TO]
#                                    copy the workdir into TO (runs) of the folder you are in
#   launch/tpu_vm.sh delete          delete the slice and its disks
#
# A run goes on when the connection is gone; a later `run` of the same workdir continues it. A
# slice of several hosts needs WORKDIR on a share that every worker mounts at the same place
# (such as Filestore), and one flag where 8 slices do not divide over its devices:
#   launch/tpu_vm.sh run configs/covid.py /shared/covid --config.train.batch_size=16
# If the slice is taken away: `create`, `install`, `data`, `run` again, and training goes on if
# WORKDIR was on a share. DRY_RUN=1 prints every command and runs none. Needs gcloud, signed in.
# Set by the environment:
#   NAME=biedsnet ZONE=us-west4-a VERSION=v2-alpha-tpuv5-lite
#   TYPE=v5litepod-8 (8 chips on one host; v5litepod-16 and up: several hosts)
set -euo pipefail
name=${NAME:-biedsnet} zone=${ZONE:-us-west4-a}
type=${TYPE:-v5litepod-8} version=${VERSION:-v2-alpha-tpuv5-lite}
# shellcheck source=/dev/null
source "$(dirname "${BASH_SOURCE[0]}")/vm.sh"

tpu() { call gcloud compute tpus tpu-vm "$@" --zone="$zone"; }
everywhere() { tpu ssh "$name" --worker=all --command="$1"; }
first() { tpu ssh "$name" --worker=0 --command="$1"; }
send() { tpu scp "$@" --worker=all; }
bring() { tpu scp --recurse "$@" --worker=0; }

case ${1:-} in
  create) tpu create "$name" --accelerator-type="$type" --version="$version" --spot ;;
  install)
    copy_project
    # The image's Python is too old: uv brings a newer one.
    everywhere 'python3 -m pip install --quiet --user uv &&
.local/bin/uv venv --clear --python=3.12 venv &&
.local/bin/uv pip install --quiet --python=venv "jax[tpu]" -r biedsnet/requirements.txt \
  -c biedsnet/constraints.txt'
    ;;
  data) copy_data "${2:-}" ;;
  run) start_run "${@:2}" ;;
  logs) show_log ;;
  stop) stop_run ;;
  fetch) fetch_run "${@:2}" ;;
  delete) tpu delete "$name" --quiet ;;
  *) usage ;;
esac
