"""The figures of the BIEDSNet paper, Tables 1 and 2, as printed there.

The paper selects 1490 slices of 20 COVID-19 CT cases by a rule it does not give, and
does not publish its split. Its numbers fit no exact definition (see `metrics.paper`):
HD is the root of a pixel count, empty slices seem to enter the mean of Dice, and recall
and precision may have changed places.
"""

COLUMNS = ("dice", "hd", "iou", "accuracy", "recall", "precision")

# Row of a table -> values of COLUMNS.
TABLE_1 = {
    "unet": (0.7037, 2.9616, 0.5917, 0.9769, 0.6284, 0.8005),
    "unetpp": (0.7291, 2.7829, 0.6121, 0.9772, 0.6255, 0.8255),
    "attention_unet": (0.7113, 2.8352, 0.5955, 0.9770, 0.6441, 0.7923),
    "unext": (0.6653, 2.8358, 0.5589, 0.9775, 0.6577, 0.7265),
    "swin_unet": (0.5698, 2.9158, 0.4616, 0.9771, 0.5882, 0.6153),
    "medsegdiff": (0.7424, 2.7798, 0.6182, 0.9767, 0.5670, 0.8745),
    "biedsnet": (0.7578, 2.7090, 0.6322, 0.9764, 0.5440, 0.8924),
}
TABLE_2 = {
    "row1": (0.7233, 2.9764, 0.6045, 0.9748, 0.5037, 0.9155),
    "row2": (0.7308, 2.8655, 0.6104, 0.9760, 0.5433, 0.8745),
    "row3": (0.7444, 2.8032, 0.6252, 0.9760, 0.5288, 0.8978),
    "row4": (0.7512, 2.7390, 0.6264, 0.9765, 0.5619, 0.8778),
    "row5": (0.7578, 2.7090, 0.6322, 0.9764, 0.5440, 0.8924),
}

LABELS = {
    "unet": "UNet",
    "unetpp": "UNet++",
    "attention_unet": "AttentionUNet",
    "unext": "UNeXt",
    "swin_unet": "SwinUNet",
    "medsegdiff": "MedSegDiff",
    "biedsnet": "BIEDSNet",
    # The paper has neither this row nor the next four.
    "trans_unet": "TransUNet",
    "paper": "BIEDSNet, the paper's choices",
    "direct": "BIEDSNet, no diffusion",
    "no_bffm": "BIEDSNet, no BFFM",
    "no_attention": "BIEDSNet, no attention",
    "row1": "1 baseline",
    "row2": "2 + BFFM",
    "row3": "3 + ADRB attention",
    "row4": "4 + joint loss",
    "row5": "5 + multi-layer supervision",
}
