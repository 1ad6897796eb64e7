"""Rows that launch/table1.sh and launch/table2.sh train, in their order."""

TABLE_1 = [
    "unet",
    "unetpp",
    "attention_unet",
    "unext",
    "swin_unet",
    "medsegdiff",
    "trans_unet",
    "biedsnet",
]
TABLE_2 = ["row1", "row2", "row3", "row4", "row5"]
