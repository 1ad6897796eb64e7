#!/usr/bin/env bash
# Trains and tests the rows of a table, one after another, and writes a report.
# table1.sh and table2.sh name the rows.
# shellcheck disable=SC2154 # project is set by runs.sh
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/table1.sh ROOT OUT [--variant=NAME] [--seeds=0,1,2] [--folds=K] [--settings=FILE]
                        [flags ...]
       launch/table2.sh ROOT OUT ...

ROOT     data folder of configs/covid.py, or the word "phantom" for made-up data
OUT      gets a workdir for each run, OUT/<row>/seed<k>, with --folds OUT/<row>/seed<k>/fold<f>,
         and at the end OUT/report.html and OUT/report.md
--variant=NAME   a further config variant for all rows, such as cpu (small and short)
--seeds=0,1,2    seeds of each row; 0 alone if not given
--folds=K        cross-validation by case: each row K times, so that every case is tested once
--settings=FILE  with --folds, further flags of each row and fold: lines of
                 "row fold flag flag ...", one for every run, as benchmarks/tables/search.py
                 writes them

Every other flag goes to each run of biedsnet_jax.main, for example --config.train.steps=2000.

The same command goes on where it stopped: a row with results.json is skipped, an unfinished
one continues. A row that fails does not stop the others; it is listed at the end.
Exit code: 0 all rows done, 2 wrong arguments, 3 a row failed, 130 interrupted.
TEXT
}

# shellcheck source=/dev/null
source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"

absolute() {
  case $1 in
    /*) printf '%s' "$1" ;;
    *) printf '%s' "$PWD/$1" ;;
  esac
}

read -ra rows <<<"${1:?rows, as table1.sh and table2.sh give them}"
shift
root='' out='' variant='' seeds=0 folds=0 settings='' flags=()
for argument in "$@"; do
  case $argument in
    -h | --help) usage && exit ;;
    --variant=*) variant=${argument#*=} ;;
    --seeds=*) seeds=${argument#*=} ;;
    --folds=*) folds=${argument#*=} ;;
    --settings=*) settings=${argument#*=} settings=${settings/#\~\//$HOME/} ;;
    -*) flags+=("$argument") ;;
    *)
      if [[ -z $root ]]; then
        root=$argument
      elif [[ -z $out ]]; then
        out=$argument
      else
        refuse "$argument is one argument too many. After ROOT and OUT give --name=value."
      fi
      ;;
  esac
done
[[ -n $root && -n $out ]] || { usage >&2 && exit 2; }
[[ $seeds =~ ^[0-9]+(,[0-9]+)*$ ]] ||
  refuse "--seeds is $seeds, which is not a list of numbers. Give one such as --seeds=0,1,2."
IFS=, read -ra seeds <<<"$seeds"
[[ $folds =~ ^[0-9]+$ && $folds != 1 ]] ||
  refuse "--folds is $folds, which is not a number of folds. Give 2 or more."
if [[ -n $settings ]]; then
  [[ -f $settings ]] ||
    refuse "--settings $settings is not a file. Give the one that benchmarks/tables/search.py wrote."
  ((folds)) || refuse "--settings $settings has the flags of folds. Give --folds=K too."
  settings=$(absolute "$settings")
fi

out=$(absolute "$out")
if [[ $root == phantom ]]; then
  config=configs/phantom.py data=(--config.eval.paper=True) shown=--config.eval.paper=True
else
  root=$(absolute "$root")
  [[ -d $root ]] ||
    refuse "ROOT $root is not a folder. Give the one with images/ and masks/, or phantom."
  config=configs/covid.py data=("--config.data.root=$root") shown=--config.data.root=DIR
fi

# Prints the flags of a row and fold in the file of settings; fails where there are none.
own_flags() {
  local row fold rest
  while read -r row fold rest; do
    if [[ $row == "$1" && $fold == "$2" ]]; then
      echo "$rest"
      return
    fi
  done <"$settings"
  return 1
}

# Does one run, unless it was done before. Arguments: row, seed, fold or nothing.
run() {
  local name="$1, seed $2${3:+, fold $3}"
  local workdir=$out/$1/seed$2${3:+/fold$3}
  done_before "$name" "$workdir" && return
  local chosen=("--config=$config:$1${variant:+,$variant}" "--config.seed=$2") own=() line=''
  if [[ -n $settings ]] && ! line=$(own_flags "$1" "$3"); then
    failed+=("$name: no line of it in $settings")
    return
  fi
  read -ra own <<<"$line"
  chosen+=(${3:+"--config.split.folds=$folds" "--config.split.fold=$3"})
  chosen+=(${own[@]+"${own[@]}"} ${flags[@]+"${flags[@]}"})
  train "$name" "$workdir" "--config=$project/${chosen[0]#--config=}" "${chosen[@]:1}" \
    ${data[@]+"${data[@]}"} "--workdir=$workdir" || return 0
  # The command of this run, but for where data and workdir lie. %q also quotes commas, which
  # only need it inside braces.
  local quoted
  quoted=$(printf ' %q' "${chosen[@]}")
  printf 'python -m biedsnet_jax.main%s%s --workdir=WORKDIR\n' "${quoted//\\,/,}" \
    " $shown" >"$workdir/command.txt"
}

# Folds are outermost, so that an unfinished table compares whole rows.
for fold in $( ((folds)) && seq 0 $((folds - 1)) || echo none); do
  for seed in "${seeds[@]}"; do
    for row in "${rows[@]}"; do
      run "$row" "$seed" "${fold#none}"
    done
  done
done

finish "$out" "$out"
