#!/usr/bin/env bash
# What folds.sh and rows.sh share; it is not run by itself. They train and test runs one after
# another: `finished` has the workdirs of those that are done, `failed` a line for each other.

# The package beside this script, whatever lies in the folder you are in.
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH=$project${PYTHONPATH:+:$PYTHONPATH} PYTHONSAFEPATH=1
trap 'echo "launch: interrupted; the same command goes on" >&2; exit 130' INT

finished=() failed=()

refuse() {
  echo "launch: $1" >&2
  exit 2
}

# Says which run comes, by its name and workdir, and whether it was done before.
done_before() {
  if [[ ! -s $2/results.json ]]; then
    echo "== $1"
    return 1
  fi
  echo "== $1: done before, $2/results.json"
  finished+=("$2")
}

# Does the run of a name and workdir with the flags that follow; fails where it does.
train() {
  local name=$1 workdir=$2 code=0
  python -m biedsnet_jax.main "${@:3}" || code=$?
  if ((code == 130)); then
    exit 130
  elif ((code != 0)); then
    failed+=("$name: exit code $code")
  elif [[ ! -s $workdir/results.json ]]; then
    failed+=("$name: left no $workdir/results.json")
  else
    finished+=("$workdir")
    return
  fi
  return 1
}

# Writes the report of WORKDIRS into the folder OUT, and ends with 3 where something failed.
finish() {
  local workdirs=$1 out=$2
  if ((${#finished[@]})); then
    python -m biedsnet_jax.main --mode=report "--workdir=$workdirs" \
      "--output=$out/report.html" || failed+=("report: exit code $?")
  fi
  if ((${#failed[@]})); then
    echo "launch: failed:" >&2
    printf '  %s\n' "${failed[@]}" >&2
    exit 3
  fi
}
