"""Every field of a config, with its default. The other configs import this one.

`--helpfields` prints the fields with what each may hold; the comments here are its text.
On the command line a field is set as `--config.train.steps=2000`. The config is locked:
a field that does not exist is an error, from Python too.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    """The full-size BIEDSNet of the paper at 256x256, without a data source."""
    c = ConfigDict()
    # Seed of all random numbers. The same config, seed and kind of device give the same
    # bits; on a GPU with a flag of XLA (docs/train.md).
    c.seed = 0
    # Name of this run in tables; "" takes the network's name.
    c.row = ""
    # Network to train. Its own fields are networks.NAME.*
    c.network = "biedsnet"
    # Python file of yours that holds the class `network` (docs/extend.md); "" for none.
    c.network_file = ""
    # How masks are made. "auto": by diffusion where the network can; "direct": in one
    # pass without noise.
    c.method = "auto"
    # Type that the network computes in. "bfloat16" saves time and memory on GPU and TPU;
    # parameters, norms' statistics, losses and sampler stay float32.
    c.dtype = "float32"
    # Folder for compiled programs. "auto": the folder that jax was given, else the
    # user's cache folder; "": off.
    c.compile_cache = "auto"

    c.networks = _networks()
    _data(c)
    _grid(c)
    _sources(c)
    _split(c)
    _augment(c)
    _init(c)
    _diffusion(c)
    _loss(c)
    _sampler(c)
    _train(c)
    _eval(c)
    _run(c)
    return c.lock()


def _data(c):
    c.data = ConfigDict()
    # Kind of data. "folder": PNG, JPEG or TIFF slices; "nifti": volumes; "tfds": a
    # TensorFlow Datasets set; "phantom": drawn, without files.
    c.data.source = "folder"
    # Folder with images/ and masks/; with images/ and labels/ for nifti; with the
    # archives for tfds.
    c.data.root = config_dict.placeholder(str)
    # Name of the data set in results.
    c.data.name = "folder"
    # Where to get the data; the error about a missing root ends with it.
    c.data.hint = ""
    # Channels of the image: 1 (grey) or 3 (colour); any number for nifti.
    c.data.channels = 1
    # Neighbouring slices on each side that a network sees as further channels (2.5D);
    # nifti only.
    c.data.context = 0
    # Number of foreground classes, k.
    c.data.classes = 1
    # How a file of folder and nifti tells its case. "auto": by its folder, else by the
    # numbers in its name (patient_1_slice_7 is of patient_1). "": by its folder, also one
    # called train, else each file is a case, as in earlier versions. Otherwise a regular
    # expression whose first group is the case, such as r"(patient_\d+)".
    c.data.case = "auto"
    # Label values of each class, for nifti and tfds. (): 1 to k, or all but 0 where k is
    # 1.
    c.data.labels = ()
    # Label that marks what was not annotated, such as "255", or for folder a colour, such as
    # "#ff0000": such pixels are left out of training and scores. "": that of dataset.json,
    # or none.
    c.data.ignore = ""
    # Cases, by name or by pattern, and the classes that were not annotated in them, such as
    # (("site_b_*", (2,)),): there these are left out of training and scores.
    c.data.unannotated = ()
    # Names of the classes, for tables and files; () for those of dataset.json, or none.
    c.data.class_names = ()
    # Names of the image's channels; () for those of dataset.json, or none.
    c.data.channel_names = ()
    # Fewest foreground pixels, of any class, that a slice of a volume must have; nifti
    # only.
    c.data.min_foreground = 0
    # Share of each training batch that comes from slices with a lesion, the classes drawn
    # evenly; 0 takes every slice once an epoch.
    c.data.foreground = 0.0
    # Reads every file once before training, so that a broken one stops the run at its
    # start.
    c.data.verify = True
    # Keeps decoded slices in memory. Turn it off where they do not fit.
    c.data.cache = True
    # Folder for slices of volumes and TFDS sets. "auto": the user's cache folder.
    c.data.cache_dir = "auto"


def _grid(c):
    # Height and width of the network's input, in pixels.
    c.data.size = 256
    # How a slice of another shape comes to that size. "squash": resized to it, whatever its
    # proportions; "pad": resized in its proportions, with its lowest values around it;
    # "tile": cut into overlapping tiles, of which a network trains on one by chance.
    c.data.fit = "squash"
    # Spacing that slices are resampled to first, for pad and tile: "0.8" or "0.8,0.7"
    # (row, column) in mm; "" for their own pixels. "auto": for tile the median of the
    # training cases, for pad that at which their median slice fills the canvas. Slices
    # of unknown spacing keep their pixels.
    c.data.spacing = "auto"
    # What a network trains on where the mask is resized. "hard": each pixel is of the class
    # that covers most of it; "share": it has the share that each class covers.
    c.data.target = "hard"
    # Plane that volumes are cut in: "axial", "coronal" or "sagittal". "auto": that in which
    # most of them were taken, where axial slices would cut across it; nifti only.
    c.data.plane = "auto"
    # (low, high) that is clipped to and mapped to [0, 1], in the units of the file; () for
    # none. Set it for CT, for example (-1250.0, 250.0).
    c.data.window = ()
    # Scaling of each slice by its own intensities, after the window.
    c.data.normalise = "percentile"


def _sources(c):
    c.data.phantom = ConfigDict()
    # Number of cases to draw.
    c.data.phantom.n_cases = 40
    # Slices of each case.
    c.data.phantom.slices_per_case = 12
    # How faint and blurred lesions are: 0 is easiest, 1 hardest.
    c.data.phantom.difficulty = 0.2
    # Share of each case's slices that have no lesion.
    c.data.phantom.empty_fraction = 0.15
    # Seed of the drawing; another one gives other cases.
    c.data.phantom.seed = 0

    c.data.tfds = ConfigDict()
    # A prepared set, as "name" or "name/config". "covid19_ct_seg" is prepared from
    # data.root.
    c.data.tfds.name = ""
    # Folder of prepared sets; "" takes that of TFDS itself.
    c.data.tfds.data_dir = ""
    # The set's own splits to read, such as "train+test". Who is tested is set by split.*
    c.data.tfds.split = "all"
    # Feature that holds the image.
    c.data.tfds.image = "image"
    # Feature that holds the label map.
    c.data.tfds.mask = "mask"
    # Feature that names the case, whose slices stay on one side; "": each example is a
    # case.
    c.data.tfds.case = ""
    # Feature that names the slice; "" numbers the slices.
    c.data.tfds.slice = ""
    # Feature that holds the pixel spacing (row, column) in mm; "" for unknown.
    c.data.tfds.spacing = ""
    # What 0 and 255 of a uint8 image stand for, such as Hounsfield units; () leaves them.
    c.data.tfds.units = ()


def _split(c):
    c.split = ConfigDict()
    # Shares of the cases for training, validation and test.
    c.split.fractions = (0.8, 0.1, 0.1)
    # Seed that deals the cases to the sides.
    c.split.seed = 0
    # Folds of a k-fold split by case, 2 or more; 0 splits by fractions. Use folds where
    # cases are few: each is then tested once.
    c.split.folds = 0
    # The fold to test, from 0 to folds - 1.
    c.split.fold = 0
    # Cases to train on, by name or by pattern such as "a*". Naming any side replaces
    # fractions and folds.
    c.split.train = ()
    # Cases to validate on, by name or by pattern.
    c.split.val = ()
    # Cases to test on, by name or by pattern.
    c.split.test = ()


def _augment(c):
    c.augment = ConfigDict()
    # Probability that a slice is mirrored left to right. Set 0 where labels tell left from
    # right.
    c.augment.hflip = 0.5
    # Probability that a slice is mirrored top to bottom; 0 in the reference implementation.
    c.augment.vflip = 0.5
    # Largest rotation, in degrees.
    c.augment.rotate_degrees = 10.0
    # Probability of that rotation.
    c.augment.rotate = 1.0
    # Largest magnification or reduction, as a share of the size.
    c.augment.scale = 0.1
    # Largest change of gamma, contrast and brightness, as a share.
    c.augment.intensity = 0.1
    # Probability of a magnification by 0.7 to 1.4. This and all below are nnU-Net's; its
    # probabilities are those of the variant :nnunet_augment.
    c.augment.zoom = 0.0
    # Probability of an elastic deformation.
    c.augment.elastic = 0.0
    # Probability of Gaussian noise, up to a third of the slice's deviation.
    c.augment.noise = 0.0
    # Probability of a Gaussian blur of 0.5 to 1 pixel.
    c.augment.blur = 0.0
    # Probability of 0.75 to 1.25 times the brightness.
    c.augment.brightness = 0.0
    # Probability of 0.75 to 1.25 times the contrast.
    c.augment.contrast = 0.0
    # Probability of a resolution of 0.5 to 1 times the slice's own.
    c.augment.low_resolution = 0.0
    # Probability of a gamma of 0.7 to 1.5 on the inverted slice.
    c.augment.inverted_gamma = 0.0
    # Probability of a gamma of 0.7 to 1.5.
    c.augment.gamma = 0.0


def _init(c):
    c.init = ConfigDict()
    # Weights that training starts from: a workdir, whose EMA weights are taken, or a file
    # (.safetensors, .npz, .pth); "" for a fresh start. What does not fit is named,
    # and spread or drawn anew.
    c.init.source = ""
    # Patterns of parameters that stay as in init.source, such as ("condition",).
    c.init.freeze = ()


def _diffusion(c):
    c.diffusion = ConfigDict()
    # Number of times of the noise schedule, T.
    c.diffusion.timesteps = 1000
    # How noise grows with time.
    c.diffusion.schedule = "linear"
    # How a mask y in {0, 1} becomes x_0. "plus_minus": x_0 = s (2 y - 1); "zero_one":
    # x_0 = y, as in the reference implementation.
    c.diffusion.mask_range = "plus_minus"
    # Scale of the mask, s. A smaller one means more noise at every time.
    c.diffusion.mask_scale = 1.0
    # Shows the denoiser its last prediction of x_0 as well.
    c.diffusion.self_condition = False


def _loss(c):
    c.loss = ConfigDict()
    # Loss of each head. "joint": SmoothL1, Dice and BCE; "mse": the squared error;
    # "dice_bce": Dice and BCE.
    c.loss.name = "joint"
    # Error at which SmoothL1 turns from a square to a line.
    c.loss.smooth_l1_beta = 1.0
    # Constant added to numerator and denominator of Dice.
    c.loss.dice_smooth = 1.0
    # Weight of Dice.
    c.loss.dice_weight = 1.0
    # Weight of BCE.
    c.loss.bce_weight = 0.5
    # Weight of the final head, then those of the side heads, finest first.
    c.loss.supervision_weights = (0.7, 0.1, 0.1, 0.1)


def _sampler(c):
    c.sampler = ConfigDict()
    # Sampler of a diffusion method; "dpm_solver" is DPM-Solver++(2M).
    c.sampler.method = "ddim"
    # Calls of the network for each sample. One scored as well as more (RESULTS.md), but
    # more steps make samples differ more.
    c.sampler.steps = 1
    # Noise that DDIM adds: 0 is deterministic, 1 is as much as DDPM.
    c.sampler.eta = 0.0
    # Times that are visited: "trailing" from the last one, "linspace" evenly to both ends,
    # "leading" to the first.
    c.sampler.spacing = "trailing"
    # Samples of each image, K.
    c.sampler.ensemble = 5
    # Also predicts mirrored slices and averages, left to right ("lr"), top to bottom ("ud")
    # or both ("lr,ud"), where training mirrored so too. It takes 2 or 4 times as long. A
    # network of one pass reads it as well.
    c.sampler.mirror = ""

    # How the samples of an image become one probability; "mean_squared" is what MedSegDiff
    # calls staple.
    c.fusion = "mean"
    # Probability above which a pixel belongs to the mask.
    c.threshold = 0.5
    # Changes masks by what made those of the validation cases better (postprocess.json):
    # a threshold a class, holes filled, small or all but the largest objects removed.
    # Training decides it before the test; False neither decides nor applies it.
    c.postprocess = True


def _train(c):
    c.train = ConfigDict()
    # Updates of the parameters.
    c.train.steps = 20_000
    # Slices of each step, over all devices.
    c.train.batch_size = 8
    # Parts that a batch is cut into, computed one after another. Raise it where a batch
    # does not fit in memory.
    c.train.accumulate = 1
    # Peak learning rate of AdamW.
    c.train.learning_rate = 1e-4
    # Steps until the learning rate reaches its peak.
    c.train.warmup_steps = 500
    # Share of the peak that the cosine ends at.
    c.train.final_fraction = 0.01
    # Weight decay of AdamW.
    c.train.weight_decay = 1e-8
    # Largest global norm of a gradient.
    c.train.clip_norm = 1.0
    # Decay per step of the moving average of the parameters, which is evaluated. Lower it
    # for short runs.
    c.train.ema = 0.9999
    # Non-finite steps in a row after which training stops.
    c.train.max_bad_steps = 20


def _eval(c):
    c.eval = ConfigDict()
    # Steps between validations; 0 for none.
    c.eval.every = 1000
    # Slices that are predicted at once, over all devices.
    c.eval.batch_size = 8
    # Largest number of validation slices, evenly spaced; 0 takes all.
    c.eval.val_images = 200
    # Samples of each image in validation; the test takes sampler.ensemble.
    c.eval.val_ensemble = 1
    # Distance up to which borders agree for NSD, in pixels.
    c.eval.nsd_tolerance = 2.0
    # Distance up to which borders agree for NSD in mm, where the pixel spacing is known.
    c.eval.nsd_tolerance_mm = 2.0
    # Also scores in the convention that the paper's own numbers point to, for tables beside
    # its Tables 1 and 2. It is computed on the network's grid.
    c.eval.paper = False
    # Largest number of test slices kept for the report's pictures; 0 for none.
    c.eval.pictures = 32
    # Also scores lesion by lesion: found, missed and false ones, by size, in lesions.csv.
    c.eval.lesions = False
    # Share of a lesion's pixels that must be predicted for it to be found; 0 for any pixel.
    c.eval.lesion_overlap = 0.0


def _run(c):
    c.checkpoint = ConfigDict()
    # Steps between checkpoints.
    c.checkpoint.every = 1000
    # Newest checkpoints to keep; 2 leaves one to fall back on.
    c.checkpoint.keep_latest = 2
    # Best checkpoints, by validation Dice, to keep.
    c.checkpoint.keep_best = 1

    c.parallel = ConfigDict()
    # Devices that share one copy of parameters, optimizer and EMA (FSDP). Raise it for a
    # model that does not fit one device.
    c.parallel.fsdp = 1

    c.log = ConfigDict()
    # Steps between lines of metrics.
    c.log.every = 50
    # Also writes the metrics for TensorBoard.
    c.log.tensorboard = True
    # Slices in the picture that each validation writes.
    c.log.images = 4


def _networks() -> ConfigDict:
    """Each network at the size that its authors publish."""
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
