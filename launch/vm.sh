#!/usr/bin/env bash
# What tpu_vm.sh and gpu_vm.sh share; it is not run by itself. They set `name`, the machine's, and
# say how it is reached: `everywhere COMMAND` runs one on all of its workers, `first COMMAND` on
# the first, `send [--recurse] FROM TO` copies to all, `bring FROM TO` from the first.
# shellcheck disable=SC2154,SC2016 # name is theirs, and the machine expands what is quoted

project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

refuse() {
  echo "launch: $*" >&2
  exit 2
}

# Prints the comment at the head of the script.
usage() {
  awk 'NR > 1 && !/^#/ { exit } NR > 1 { sub(/^# ?/, ""); print }' "$0"
  exit 2
}

# Prints a word as a shell reads it.
quoted() {
  if [[ $1 =~ ^[A-Za-z0-9_./=:,@%+-]+$ ]]; then
    printf '%s' "$1"
  else
    printf "'%s'" "$(printf '%s' "$1" | sed "s/'/'\\\\''/g")"
  fi
}

# Runs a command; with DRY_RUN=1 prints it instead.
call() {
  if [[ -z ${DRY_RUN:-} ]]; then
    "$@"
    return
  fi
  local word line=
  for word in "$@"; do line+="${line:+ }$(quoted "$word")"; done
  echo "$line"
}

# Copies this folder to the machine, as ~/biedsnet, with the edits of files that git knows.
copy_project() {
  local archive=${TMPDIR:-/tmp}/biedsnet.tar.gz edits new
  new=$(git -C "$project" ls-files --others --exclude-standard --directory)
  [[ -z $new ]] || echo "launch: not copied, since git does not know it:" "${new//$'\n'/, }" >&2
  edits=$(git -C "$project" stash create)
  if [[ -z ${DRY_RUN:-} ]]; then
    archive=$(mktemp)
    # shellcheck disable=SC2064 # its name is known now, and gone when the script ends
    trap "rm -f $(quoted "$archive")" EXIT
  fi
  call git -C "$project" archive --format=tar.gz --output="$archive" "${edits:-HEAD}"
  send "$archive" "$name:biedsnet.tar.gz"
  everywhere 'mkdir -p biedsnet && tar -xzf biedsnet.tar.gz -C biedsnet'
}

# Copies a data folder to ~/biedsnet/data.
copy_data() {
  local folder
  [[ -d ${1:-} ]] || refuse "DIR is ${1:-missing}, which is no folder. Give the one with the data."
  folder=$(cd "$1" && pwd)
  everywhere 'mkdir -p biedsnet/data'
  send --recurse "$folder" "$name:biedsnet/data"
  echo "launch: train with --config.data.root=data/$(basename "$folder")" >&2
}

# On the machine: enters the folder and says how to tell whether its run still goes.
enter='cd biedsnet || exit
going() { ps -o args= -p "$(cat run.pid 2>/dev/null)" 2>/dev/null | grep -q biedsnet_jax; }
'
enter_run=$enter'test -e run.log || { echo "launch: no run was started here" >&2; exit 2; }
'

# Starts a run that outlives this connection, then shows its log until it ends.
start_run() {
  local flags
  [[ $# -ge 2 ]] || refuse "CONFIG or WORKDIR is missing. Give both, such as" \
    "configs/covid.py runs/covid."
  printf -v flags ' %q' "--config=$1" "--workdir=$2" "${@:3}"
  # The shell around it leaves the exit code, for show_log.
  everywhere "$enter"'if going; then
  echo "launch: a run is going on. Watch it with logs, or end it with stop." >&2
  exit 2
fi
rm -f run.pid run.code
nohup setsid bash -c '\''"$@" & echo $! >run.pid; wait $!; echo $? >run.code'\'' run \
  ../venv/bin/python -m biedsnet_jax.main'"$flags"' >run.log 2>&1 </dev/null &
until test -s run.pid; do sleep 0.1; done'
  show_log
}

# Shows the log of the run on the first worker until the run ends, and passes its exit code on.
show_log() {
  first "$enter_run"'if going; then
  tail -n +1 -F --pid="$(cat run.pid)" run.log
else
  cat run.log
fi
for second in 1 2 3 4 5; do
  if test -s run.code; then exit "$(cat run.code)"; fi
  sleep 1
done
echo "launch: the machine was stopped during this run. Give run again." >&2
exit 1'
}

# Asks the run to write a checkpoint and end, and waits until it has.
stop_run() {
  everywhere "$enter_run"'if going; then
  kill -TERM "$(cat run.pid)"
  while going; do sleep 1; done
fi
tail -n 1 run.log'
}

# Copies a workdir of the machine to a folder here.
fetch_run() {
  local workdir=${1:-} to=${2:-runs}
  [[ -n $workdir ]] || refuse "WORKDIR is missing. Give that of the run, such as runs/covid."
  workdir=${workdir%/}
  case $workdir in
    /*) ;;
    '~'/*) workdir=${workdir#*/} ;;
    *) workdir=biedsnet/$workdir ;;
  esac
  call mkdir -p "$to"
  bring "$name:$workdir" "$to"
  echo "launch: copied to $to/$(basename "$workdir")" >&2
}
