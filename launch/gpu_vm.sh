#!/usr/bin/env bash
# Trains on a Google Cloud machine with GPUs.
#
#   launch/gpu_vm.sh create     make a spot machine: cheap, may be stopped at any time
#   launch/gpu_vm.sh install    copy this folder there and install its requirements
#   launch/gpu_vm.sh run configs/covid.py runs/covid [flags ...]
#                               train on all its GPUs, in one process
#   launch/gpu_vm.sh delete     delete the machine and its disk
#
# If Google stops the machine: `gcloud compute instances start`, then `run` again, and training
# goes on from its checkpoint. Needs gcloud, signed in. Set by the environment:
#   NAME=biedsnet  ZONE=us-central1-a  TYPE=a2-highgpu-1g (one A100; a2-highgpu-4g: four)
set -euo pipefail
name=${NAME:-biedsnet} zone=${ZONE:-us-central1-a} type=${TYPE:-a2-highgpu-1g}

there() { gcloud compute ssh "$name" --zone="$zone" --command="$1"; }

case ${1:-} in
  create)
    gcloud compute instances create "$name" --zone="$zone" --machine-type="$type" \
      --image-project=ubuntu-os-cloud --image-family=ubuntu-2404-lts-amd64 --boot-disk-size=200GB \
      --maintenance-policy=TERMINATE \
      --provisioning-model=SPOT --instance-termination-action=STOP # SIGTERM comes 30 s before
    ;;
  install)
    archive=$(mktemp)
    trap 'rm -f "$archive"' EXIT
    git -C "$(dirname "$0")/.." archive --format=tar.gz --output="$archive" HEAD # what is committed
    gcloud compute scp "$archive" "$name:biedsnet.tar.gz" --zone="$zone"
    # The driver alone: jax brings CUDA.
    there 'sudo apt-get -q update && sudo apt-get -qy install python3-venv ubuntu-drivers-common &&
      sudo ubuntu-drivers install --gpgpu && sudo modprobe nvidia &&
      mkdir -p biedsnet && tar -xzf biedsnet.tar.gz -C biedsnet && python3 -m venv venv &&
      venv/bin/pip install --quiet "jax[cuda12]" -r biedsnet/requirements.txt'
    ;;
  run)
    config=${2:?the config, such as configs/covid.py} workdir=${3:?the workdir}
    printf -v flags ' %q' "--config=$config" "--workdir=$workdir" "${@:4}"
    there "cd biedsnet && ../venv/bin/python -m biedsnet_jax.main$flags"
    ;;
  delete) gcloud compute instances delete "$name" --zone="$zone" --quiet ;;
  *) sed -n '2,12s/^# \{0,1\}//p' "$0" && exit 2 ;;
esac
