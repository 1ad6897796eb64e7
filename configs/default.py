"""Every field there is, with the value that stands where a config says nothing. Other configs import this one.

A field on the command line: `--config.train.steps=2000`. An unknown field is an error that names the nearest one.
From Python too: the config is locked, and `check_config` refuses what is not a field here.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    """The full-size BIEDSNet of the paper at 256x256; no data source is set."""
    c = ConfigDict()
    c.seed = 0
    c.row = ""  # what a table calls this run; "" is the network's name
    c.network = "biedsnet"  # one of biedsnet_jax.networks.NETWORKS
    c.network_file = ""  # your own Python file, of which `network` names a class (docs/extend.md); "": none
    c.method = "auto"  # "auto": by network; "diffusion"; "direct": one pass, no noise
    c.dtype = "float32"  # "bfloat16": compute only; parameters, norms' statistics, losses and sampler stay float32
    c.compile_cache = "auto"  # a folder for compiled programs; "auto": the user's cache folder; "": off

    c.networks = _networks()  # constructor fields of each

    c.data = ConfigDict()
    c.data.source = "folder"  # "folder": PNG, JPEG, TIFF; "nifti": volumes; "tfds"; "phantom": made on the fly
    c.data.root = config_dict.placeholder(str)  # folder with images/ and masks/ (nifti: labels/; tfds: the archives)
    c.data.name = "folder"  # what results call the data set
    c.data.hint = ""  # where to get the data, said when root is missing
    c.data.size = 256  # pixels, height and width the network sees
    c.data.channels = 1  # of the image
    c.data.context = 0  # nifti: neighbouring slices on each side, as further channels (2.5D)
    c.data.classes = 1  # k, foreground classes
    # folder, nifti: the case of a file. "auto": its folder, else by numbers in its name (patient_1_slice_7 is of
    # patient_1); "": its folder, also one called train, else itself, as in earlier versions; or a regular expression
    # whose first group is the case, such as r"(patient_\d+)"
    c.data.case = "auto"
    c.data.labels = ()  # nifti, tfds: label values of each class, ((1,), (2, 3)); (): 1 to k, or all but 0 where k is 1
    c.data.min_foreground = 0  # nifti: only slices with so many pixels of any class
    c.data.window = ()  # (low, high) in the file's units, such as Hounsfield's, to [0, 1]; (): none
    c.data.normalise = "percentile"  # per slice: "percentile", "minmax", "zscore", "none"
    c.data.verify = True  # read every file once before training
    c.data.cache = True  # keep decoded slices in memory
    c.data.cache_dir = "auto"  # folder for slices of volumes and TFDS sets; "auto": the user's cache folder
    c.data.phantom = ConfigDict(dict(n_cases=40, slices_per_case=12, difficulty=0.2, empty_fraction=0.15, seed=0))

    c.data.tfds = ConfigDict()
    c.data.tfds.name = ""  # a prepared set, "name", "name/config"; "covid19_ct_seg" is prepared from data.root
    c.data.tfds.data_dir = ""  # the folder of prepared sets; "": TFDS's own
    c.data.tfds.split = "all"  # of the set's own splits, such as "train+test"; who is tested is said by `split` below
    c.data.tfds.image = "image"  # name of the feature, as in the next four
    c.data.tfds.mask = "mask"  # label map
    c.data.tfds.case = ""  # whose slices stay on one side; "": each example is a case
    c.data.tfds.slice = ""  # what results call a slice; "": its number
    c.data.tfds.spacing = ""  # row, column in mm; "": not known
    c.data.tfds.units = ()  # (low, high): what 0 and 255 of a uint8 image stand for; (): themselves

    c.split = ConfigDict()
    c.split.fractions = (0.8, 0.1, 0.1)  # of cases: train, validation, test
    c.split.seed = 0
    c.split.folds = 0  # k > 1: k-fold by case instead of fractions
    c.split.fold = 0  # the fold that is tested, 0 to k - 1
    c.split.train = ()  # case names, or patterns such as "a*": these three, where given, replace fractions and folds
    c.split.val = ()
    c.split.test = ()

    # Probabilities and ranges; all zero is no augmentation. The lineage flips left-right only.
    c.augment = ConfigDict(dict(hflip=0.5, vflip=0.5, rotate_degrees=10.0, scale=0.1, intensity=0.1))

    c.diffusion = ConfigDict()
    c.diffusion.timesteps = 1000  # T
    c.diffusion.schedule = "linear"  # or "cosine"
    c.diffusion.mask_range = "plus_minus"  # x_0 = s (2 y - 1); "zero_one": x_0 = y, as in the lineage
    c.diffusion.mask_scale = 1.0  # s
    c.diffusion.self_condition = False  # the denoiser also sees its last prediction of x_0

    c.loss = ConfigDict()
    c.loss.name = "joint"  # "joint": SmoothL1 + Dice + 0.5 BCE; "mse"; "dice_bce"
    c.loss.smooth_l1_beta = 1.0
    c.loss.dice_smooth = 1.0
    c.loss.dice_weight = 1.0
    c.loss.bce_weight = 0.5
    c.loss.supervision_weights = (0.7, 0.1, 0.1, 0.1)  # final head, then side heads finest first

    c.sampler = ConfigDict()
    c.sampler.method = "ddim"  # "ddpm", "ddim", "dpm_solver"
    c.sampler.steps = 1  # as good as more, where it was measured (RESULTS.md); samples of several steps differ more
    c.sampler.eta = 0.0  # DDIM: 0 is deterministic, 1 is DDPM
    c.sampler.spacing = "trailing"  # of the timesteps: "trailing", "linspace", "leading"
    c.sampler.ensemble = 5  # K samples an image

    c.fusion = "mean"  # of the K samples: "mean", "majority", "staple", "mean_squared" (what MedSegDiff calls staple)
    c.threshold = 0.5  # mask = probability > threshold

    c.train = ConfigDict()
    c.train.steps = 20_000
    c.train.batch_size = 8  # over all devices
    c.train.accumulate = 1  # parts a batch is cut into, one after another
    c.train.learning_rate = 1e-4  # peak of AdamW
    c.train.warmup_steps = 500
    c.train.final_fraction = 0.01  # of the peak rate, at the end of the cosine
    c.train.weight_decay = 1e-8
    c.train.clip_norm = 1.0  # global gradient norm
    c.train.ema = 0.9999
    c.train.max_bad_steps = 20  # non-finite steps in a row before training stops

    c.eval = ConfigDict()
    c.eval.every = 1000  # steps between validations; 0: never
    c.eval.batch_size = 8  # over all devices
    c.eval.val_images = 200  # at most this many validation slices, evenly spaced; 0: all
    c.eval.val_ensemble = 1  # samples an image in validation; the test uses sampler.ensemble
    c.eval.nsd_tolerance = 2.0  # pixels: NSD is the share of both borders no farther apart
    c.eval.nsd_tolerance_mm = 2.0  # the same where the spacing is known
    c.eval.pictures = 32  # at most this many test slices are kept for the report's pictures; 0: none
    c.eval.lesions = False  # report lesion by lesion too: found, missed, false, by size, and lesions.csv
    c.eval.lesion_overlap = 0.0  # share of a lesion's pixels to predict for it to be found; 0: any pixel

    c.checkpoint = ConfigDict(dict(every=1000, keep_latest=2, keep_best=1))  # every: steps; 2: one to fall back on
    c.parallel = ConfigDict(dict(fsdp=1))  # devices that share one copy of parameters, optimizer and EMA (FSDP)
    c.log = ConfigDict(dict(every=50, tensorboard=True, images=4))  # every: steps; images: validation panel
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
