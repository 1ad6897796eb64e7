"""Every field there is, with the value that stands where a config says nothing. Other
configs import this one.

`--helpfields` prints them with what each may hold; comments here are read for it. A
field on the command line: `--config.train.steps=2000`. An unknown field is an error
that names the nearest one. From Python too: the config is locked, and `check_config`
refuses what is not a field here.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    """The full-size BIEDSNet of the paper at 256x256; no data source is set."""
    c = ConfigDict()
    # same config, seed and kind of device: same bits
    c.seed = 0
    # what a table calls this run; "" is the network's name
    c.row = ""
    # its own fields are networks.NAME.*
    c.network = "biedsnet"
    # your own Python file, of which `network` names a class (docs/extend.md); "": none
    c.network_file = ""
    # "auto": diffusion where the network can; "direct": one pass, no noise
    c.method = "auto"
    # "bfloat16" computes in it; parameters, statistics of norms, losses and sampler
    # stay float32
    c.dtype = "float32"
    # folder for compiled programs; "auto": the user's cache folder; "": off
    c.compile_cache = "auto"

    # constructor fields of each
    c.networks = _networks()

    c.data = ConfigDict()
    # "folder": PNG, JPEG, TIFF; "nifti": volumes; "tfds": a TFDS set; "phantom": drawn
    c.data.source = "folder"
    # folder with images/ and masks/ (nifti: labels/; tfds: the archives)
    c.data.root = config_dict.placeholder(str)
    # what results call the data set
    c.data.name = "folder"
    # where to get the data, said when root is missing
    c.data.hint = ""
    # height and width in pixels that the network sees
    c.data.size = 256
    # channels of the image: 1 (grey) or 3 (colour); nifti: any
    c.data.channels = 1
    # neighbouring slices of a volume on each side, as further channels (2.5D)
    c.data.context = 0
    # foreground classes, k
    c.data.classes = 1
    # The case of a file, of folder and nifti. "auto": its folder, else by numbers in
    # its name (patient_1_slice_7 is of patient_1); "": its folder, also one called
    # train, else itself, as in earlier versions; or a regular expression whose first
    # group is the case, such as r"(patient_\d+)"
    c.data.case = "auto"
    # label values of each class, of nifti and tfds; (): 1 to k, or all but 0 where k is
    # 1
    c.data.labels = ()
    # only slices of volumes with so many pixels of any class
    c.data.min_foreground = 0
    # (low, high) that becomes [0, 1], in the units of the file; (): none
    c.data.window = ()
    # scales each slice by itself
    c.data.normalise = "percentile"
    # read every file once before training
    c.data.verify = True
    # keep decoded slices in memory
    c.data.cache = True
    # folder for slices of volumes and TFDS sets; "auto": the user's cache folder
    c.data.cache_dir = "auto"
    c.data.phantom = ConfigDict()
    # cases that are drawn
    c.data.phantom.n_cases = 40
    # slices of each case
    c.data.phantom.slices_per_case = 12
    # takes contrast from lesions and widens their borders
    c.data.phantom.difficulty = 0.2
    # share of the slices of a case without a lesion
    c.data.phantom.empty_fraction = 0.15
    # another one draws other cases
    c.data.phantom.seed = 0

    c.data.tfds = ConfigDict()
    # a prepared set, "name", "name/config"; "covid19_ct_seg" is prepared from data.root
    c.data.tfds.name = ""
    # the folder of prepared sets; "": TFDS's own
    c.data.tfds.data_dir = ""
    # of the set's own splits, such as "train+test"; split.* says who is tested
    c.data.tfds.split = "all"
    # name of the feature that is the image
    c.data.tfds.image = "image"
    # name of the label map
    c.data.tfds.mask = "mask"
    # name of the case, whose slices stay on one side; "": each example is a case
    c.data.tfds.case = ""
    # name of the slice's name; "": its number
    c.data.tfds.slice = ""
    # name of (row, column) in mm; "": not known
    c.data.tfds.spacing = ""
    # what 0 and 255 of a uint8 image stand for; (): themselves
    c.data.tfds.units = ()

    c.split = ConfigDict()
    # shares of the cases: train, validation, test
    c.split.fractions = (0.8, 0.1, 0.1)
    # deals the cases to the sides
    c.split.seed = 0
    # k-fold by case instead of fractions, from 2; 0: none
    c.split.folds = 0
    # the fold that is tested, 0 to k - 1
    c.split.fold = 0
    # names of cases, or patterns such as "a*"; any side that is named replaces
    # fractions and folds
    c.split.train = ()
    # as split.train
    c.split.val = ()
    # as split.train
    c.split.test = ()

    # all zero: none
    c.augment = ConfigDict()
    # probability that left and right change sides
    c.augment.hflip = 0.5
    # probability that top and bottom do; 0 in the lineage
    c.augment.vflip = 0.5
    # largest angle
    c.augment.rotate_degrees = 10.0
    # largest change of size, as a share
    c.augment.scale = 0.1
    # largest change of gamma, contrast and brightness
    c.augment.intensity = 0.1

    c.diffusion = ConfigDict()
    # times of the noise schedule, T
    c.diffusion.timesteps = 1000
    # how noise grows with time
    c.diffusion.schedule = "linear"
    # masks y as x_0 = s (2 y - 1); "zero_one": x_0 = y, as in the lineage
    c.diffusion.mask_range = "plus_minus"
    # scale of the mask, s
    c.diffusion.mask_scale = 1.0
    # the denoiser also sees its last prediction of x_0
    c.diffusion.self_condition = False

    c.loss = ConfigDict()
    # "joint": SmoothL1 + Dice + 0.5 BCE; "mse"; "dice_bce"
    c.loss.name = "joint"
    # where SmoothL1 turns from a square to a line
    c.loss.smooth_l1_beta = 1.0
    # added to numerator and denominator of Dice
    c.loss.dice_smooth = 1.0
    # weight of Dice
    c.loss.dice_weight = 1.0
    # weight of BCE
    c.loss.bce_weight = 0.5
    # weight of the final head, then of the side heads, finest first
    c.loss.supervision_weights = (0.7, 0.1, 0.1, 0.1)

    c.sampler = ConfigDict()
    # "dpm_solver" is DPM-Solver++(2M)
    c.sampler.method = "ddim"
    # calls of the network; one was as good as more (RESULTS.md), but samples differ
    # less
    c.sampler.steps = 1
    # noise of DDIM: 0 is deterministic, 1 is DDPM
    c.sampler.eta = 0.0
    # which times are visited: from the last, evenly to both ends, or to the first
    c.sampler.spacing = "trailing"
    # samples an image, K
    c.sampler.ensemble = 5

    # of the samples; "mean_squared" is what MedSegDiff calls staple
    c.fusion = "mean"
    # a pixel is of the mask where its probability is above
    c.threshold = 0.5

    c.train = ConfigDict()
    # updates of the parameters
    c.train.steps = 20_000
    # slices a step, over all devices
    c.train.batch_size = 8
    # parts a batch is cut into, one after another
    c.train.accumulate = 1
    # peak of AdamW
    c.train.learning_rate = 1e-4
    # steps until the peak
    c.train.warmup_steps = 500
    # share of the peak rate at the end of the cosine
    c.train.final_fraction = 0.01
    # of AdamW
    c.train.weight_decay = 1e-8
    # largest global norm of a gradient
    c.train.clip_norm = 1.0
    # decay of the moving average of the parameters
    c.train.ema = 0.9999
    # non-finite steps in a row before training stops
    c.train.max_bad_steps = 20

    c.eval = ConfigDict()
    # steps between validations; 0: never
    c.eval.every = 1000
    # slices at once, over all devices
    c.eval.batch_size = 8
    # at most this many validation slices, evenly spaced; 0: all
    c.eval.val_images = 200
    # samples an image in validation; the test uses sampler.ensemble
    c.eval.val_ensemble = 1
    # in pixels: NSD is the share of both borders no farther apart
    c.eval.nsd_tolerance = 2.0
    # in mm, where the spacing is known
    c.eval.nsd_tolerance_mm = 2.0
    # at most this many test slices are kept for the report's pictures; 0: none
    c.eval.pictures = 32
    # report lesion by lesion too: found, missed, false, by size, and lesions.csv
    c.eval.lesions = False
    # share of a lesion's pixels to predict for it to be found; 0: any pixel
    c.eval.lesion_overlap = 0.0

    c.checkpoint = ConfigDict()
    # steps between checkpoints
    c.checkpoint.every = 1000
    # newest ones that stay: 2 leaves one to fall back on
    c.checkpoint.keep_latest = 2
    # best ones by validation that stay
    c.checkpoint.keep_best = 1

    c.parallel = ConfigDict()
    # devices that share one copy of parameters, optimizer and EMA (FSDP)
    c.parallel.fsdp = 1

    c.log = ConfigDict()
    # steps between lines of metrics
    c.log.every = 50
    # also writes for TensorBoard
    c.log.tensorboard = True
    # slices of the validation panel
    c.log.images = 4
    return c.lock()


def _networks() -> ConfigDict:
    """Each network at the size its authors publish."""
    unet = (32, 64, 128, 256, 512)
    return ConfigDict(
        {
            "biedsnet": {
                "channels": unet,
                "blocks_per_level": 3,
                "bffm": True,
                "dconv": "separable",
                "count_include_pad": False,
                "reduction": 16,
                "residual": "cgr",
                "attention": "parallel",
                "attention_per": "block",
                "norm": "group",
                "groups": 16,
                "second_skip": True,
                "condition_joins": "after",
                "supervision": True,
                "fold": False,
                "remat": False,
            },
            "unet": {"channels": unet},
            "unetpp": {"channels": unet, "deep_supervision": True},
            "attention_unet": {"channels": (64, 128, 256, 512, 1024)},
            "unext": {"channels": (16, 32, 128, 160, 256), "drop_path": 0.0},
            "swin_unet": {
                "window": 8,
                "embed_dim": 96,
                "depths": (2, 2, 2, 2),
                "heads": (3, 6, 12, 24),
                "drop_path": 0.2,
            },
            "trans_unet": {
                "hidden": 768,
                "mlp": 3072,
                "heads": 12,
                "layers": 12,
                "resnet_units": (3, 4, 9),
                "resnet_width": 64,
                "groups": 32,
                "decoder": (256, 128, 64, 16),
                "dropout": 0.1,
            },
            "medsegdiff": {
                "version": "new",
                "channels": 128,
                "channel_mult": (1, 1, 2, 2, 4, 4),
                "num_res_blocks": 2,
                "attention_downsample": (16,),
                "num_heads": 1,
                "groups": 32,
                "highway_channels": 32,
                "highway_cap": 480,
                "highway_dropout": 0.5,
            },
        }
    )
