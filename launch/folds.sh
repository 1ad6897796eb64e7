#!/usr/bin/env bash
# Cross-validation: trains and tests each fold, one after another, and writes one report.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/folds.sh CONFIG WORKDIR K [--config.train.steps=2000 ...]

CONFIG   a config file or name with its variants, such as folder:cpu
WORKDIR  gets a workdir for each fold, WORKDIR/fold0 to fold<K-1>, and at the end
         WORKDIR/report.html and report.md: every case is tested once
K        number of folds, 2 or more

Every flag goes to each run of biedsnet_jax.main. Where data.spacing or data.plane is "auto",
all folds take what the first to start chose, so that their models can predict together.

The same command goes on where it stopped: a fold with results.json is skipped, an unfinished
one continues. A fold that fails does not stop the others; it is listed at the end.
Exit code: 0 all folds done, 2 wrong arguments, 3 a fold failed, 130 interrupted.
TEXT
}

# shellcheck source=/dev/null
source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"

[[ ${1:-} != -h && ${1:-} != --help ]] || { usage && exit; }
(($# >= 3)) || { usage >&2 && exit 2; }
config=$1 out=$2 folds=$3
flags=("${@:4}")
[[ $config != -* && $out != -* ]] ||
  refuse "$config $out begins with a flag. Give CONFIG, WORKDIR and K first, then flags."
[[ $folds =~ ^[0-9]+$ && $((10#$folds)) -gt 1 ]] ||
  refuse "K is $folds, which is not a number of folds. Give 2 or more."
folds=$((10#$folds))
for flag in ${flags[@]+"${flags[@]}"}; do
  [[ $flag == -* ]] || refuse "$flag is one argument too many. Give flags as --name=value."
  case $flag in
    --config.split.*) refuse "$flag is set by the folds. Leave it out." ;;
    --workdir* | --mode*) refuse "$flag is set by this script. Leave it out." ;;
  esac
done

# Prints what the first fold that has started chose where the config says "auto", as flags on
# one line. That may be a later one, where fold 0 failed before it chose.
chosen_flags() {
  local started
  for ((started = 0; started < folds; started++)); do
    [[ ! -s $out/fold$started/config.json ]] || break
  done
  ((started < folds)) || return 0
  python -c 'import json, sys
data = json.load(open(sys.argv[1]))["data"]
names = [name for name in ("spacing", "plane") if data.get(name, "auto") != "auto"]
print(*(f"--config.data.{name}={data[name]}" for name in names))' "$out/fold$started/config.json"
}

# Does one fold, unless it was done before.
run() {
  local name="fold $1" workdir=$out/fold$1 chosen=()
  if [[ -s $workdir/config.json ]] && ! grep -q "\"folds\": $folds,\?\$" "$workdir/config.json"; then
    refuse "$workdir is not one of $folds folds. Give another WORKDIR."
  fi
  done_before "$name" "$workdir" && return
  # A fold that has started keeps its own choice.
  [[ -s $workdir/config.json ]] || read -ra chosen <<<"$(chosen_flags)"
  train "$name" "$workdir" "--config=$config" "--workdir=$workdir" \
    "--config.split.folds=$folds" "--config.split.fold=$1" \
    ${chosen[@]+"${chosen[@]}"} ${flags[@]+"${flags[@]}"} || true
}

for ((fold = 0; fold < folds; fold++)); do
  run "$fold"
done

workdirs=$(IFS=, && echo "${finished[*]-}")
finish "$workdirs" "$out"
# To be copied into a shell, which would cut an unquoted name at a space.
[[ $workdirs != *[^[:alnum:],./_-]* ]] || printf -v workdirs %q "$workdirs"
echo "all folds as one model: --mode=predict --workdir=$workdirs"
