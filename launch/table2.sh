#!/usr/bin/env bash
# Table 2 of the paper, the ablation: five rows, trained and judged alike. See launch/rows.sh -h.
exec "$(dirname "${BASH_SOURCE[0]}")/rows.sh" "row1 row2 row3 row4 row5" "$@"
