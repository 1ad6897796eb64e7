#!/usr/bin/env bash
# Table 1 of the paper: every network, trained and judged alike. See launch/rows.sh -h.
exec "$(dirname "${BASH_SOURCE[0]}")/rows.sh" \
  "unet unetpp attention_unet unext swin_unet medsegdiff trans_unet biedsnet" "$@"
