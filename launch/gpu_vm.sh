#!/usr/bin/env bash
# Trains on a Google Cloud machine with GPUs.
#
#   launch/gpu_vm.sh create          make a spot machine: cheap, may be stopped at any time
#   launch/gpu_vm.sh install         copy this folder, with your edits, and install what it needs
#   launch/gpu_vm.sh data DIR        copy a data folder: --config.data.root=data/NAME of DIR
#   launch/gpu_vm.sh run configs/covid.py runs/covid [flags ...]
#                                    train on all its GPUs, in one process, and show the log
#   launch/gpu_vm.sh logs            show the log again
#   launch/gpu_vm.sh stop            write a checkpoint and end the run
#   launch/gpu_vm.sh fetch runs/covid [TO]
#                                    copy the workdir into TO (runs) of the folder you are in
#   launch/gpu_vm.sh start           start a machine that was stopped; then `run` again
#   launch/gpu_vm.sh delete          delete the machine and its disk
#
# A run goes on when the connection is gone; a later `run` of the same workdir continues it.
# DRY_RUN=1 prints every command and runs none. Needs gcloud, signed in. Set by the environment:
#   NAME=biedsnet  ZONE=us-central1-a  TYPE=a2-highgpu-1g (one A100; a2-highgpu-4g: four)
set -euo pipefail
name=${NAME:-biedsnet} zone=${ZONE:-us-central1-a} type=${TYPE:-a2-highgpu-1g}
# shellcheck source=/dev/null
source "$(dirname "${BASH_SOURCE[0]}")/vm.sh"

everywhere() { call gcloud compute ssh "$name" --zone="$zone" --command="$1"; }
first() { everywhere "$1"; }
send() { call gcloud compute scp "$@" --zone="$zone"; }
bring() { call gcloud compute scp --recurse "$@" --zone="$zone"; }

case ${1:-} in
  create)
    # Of a machine that Google stops, SIGTERM comes 30 s before.
    call gcloud compute instances create "$name" --zone="$zone" --machine-type="$type" \
      --image-project=ubuntu-os-cloud --image-family=ubuntu-2404-lts-amd64 \
      --boot-disk-size=200GB --maintenance-policy=TERMINATE \
      --provisioning-model=SPOT --instance-termination-action=STOP
    ;;
  install)
    copy_project
    # The driver alone: jax brings CUDA.
    everywhere 'sudo apt-get -q update &&
sudo apt-get -qy install python3-venv ubuntu-drivers-common &&
sudo ubuntu-drivers install --gpgpu && sudo modprobe nvidia &&
python3 -m venv venv &&
venv/bin/pip install --quiet "jax[cuda12]" -r biedsnet/requirements.txt \
  -c biedsnet/constraints.txt'
    ;;
  data) copy_data "${2:-}" ;;
  run) start_run "${@:2}" ;;
  logs) show_log ;;
  stop) stop_run ;;
  fetch) fetch_run "${@:2}" ;;
  start) call gcloud compute instances start "$name" --zone="$zone" ;;
  delete) call gcloud compute instances delete "$name" --zone="$zone" --quiet ;;
  *) usage ;;
esac
