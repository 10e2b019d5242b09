"""The one configuration every command reads: all keys, their types and their defaults.

A file in ``configs/`` starts from `default()` and changes what its setting needs. The config is
locked, so a key that is not listed here is refused with the nearest one that is.
"""

from __future__ import annotations

from collections.abc import Sequence

import ml_collections
from ml_collections import config_dict

from finetune_jax.errors import UserError, nearest


def default() -> ml_collections.ConfigDict:
    """Returns a fresh, locked config."""
    c = ml_collections.ConfigDict()
    c.seed = 0

    # What trains: see finetune_jax/schemes. Text such as "last_k(2) + stages('stem')", phases such
    # as "linear_probe + phase(epochs=2) >> full + phase(lr=0.1)", a program such as "lp_ft", or
    # ordered rules [("head/.*", "head(lr=10)"), (".*", "frozen")], as a list or as its text.
    c.scheme = config_dict.FieldReference("full", field_type=Sequence)
    c.batch_norm = "frozen"  # frozen | frozen_all | track | reestimate
    c.frozen_dropout = "eval"  # eval | train
    c.decay_mask = ".*kernel|.*/lora_[ab]"  # regex of the leaf paths weight decay may touch

    c.model = ml_collections.ConfigDict()
    c.model.name = "resnet20_cifar"
    c.model.dtype = "float32"  # compute dtype; trainable leaves always keep f32 masters
    c.model.frozen_dtype = "float32"  # storage of frozen leaves: float32 | bfloat16
    c.model.remat = False
    c.model.dropout = 0.0
    c.model.head = ""  # of families with several, such as VGG's gap_linear; "": their default

    c.pretrained = ml_collections.ConfigDict()
    c.pretrained.path = ""  # weight file; empty trains from scratch
    c.pretrained.new_head = False  # re-initialise the head even where its shape fits
    # How a new head starts: "" as the model draws it, zero, lecun, or copy: rows of the classes
    # whose names are also in the file `class_names`, which lists those of the weight file in order.
    c.pretrained.head_init = ""
    c.pretrained.class_names = ""
    # Leaves that may be fitted to another input: position, patch, channels.
    c.pretrained.resize = ("position",)

    c.task = ml_collections.ConfigDict()
    # classification | multilabel | ordinal | regression | segmentation | similarity, and
    # pre-training without a question: simclr | supcon | mae
    c.task.name = "classification"
    # Of training, such as "focal(gamma=2)" or "distill(teacher='runs/x', temperature=2)"; empty:
    # the task's first, see finetune_jax/tasks.
    c.task.loss = ""
    c.task.neck = 0  # segmentation: width of a convolution before the head; 0: a linear head
    c.task.num_classes = 0  # 0: as many as the data source has; any other number must agree
    c.task.label_smoothing = 0.0  # in [0, 1)

    c.data = ml_collections.ConfigDict()
    # digits | tfds:NAME[/CONFIG][:VERSION] | folder:PATH | csv:PATH | hf:OWNER/NAME[:CONFIG]: see
    # finetune_jax/data/source_*.py for what each reads and how it splits.
    c.data.source = "digits"
    c.data.data_dir = ""  # of TFDS or the hub's cache; empty takes the library's own default
    c.data.prepare = False  # tfds and hf: download and prepare a dataset that is not there
    # Columns of tfds, csv and hf that examples call image, label and mask; csv: paths of images.
    # Two, "left,right", are the pairs of images that task.name="similarity" compares.
    c.data.image_column = "image"
    c.data.label_column = "label"
    c.data.mask_column = "mask"
    # Labels of csv and hf: class | classes (several names joined by label_sep) | number | text;
    # empty infers class or number. label_until cuts each before the first such string.
    c.data.label_kind = ""
    c.data.label_sep = "|"
    c.data.label_until = ""
    c.data.split_seed = 0  # of 80/10/10 splits and of the order within one; not the run's seed
    c.data.csv = ml_collections.ConfigDict()
    c.data.csv.sep = ""  # one character, or tab | comma | space; empty: tab for .tsv, else comma
    c.data.csv.header = ()  # names of the columns of a file without a header row
    c.data.csv.encoding = "utf-8"
    c.data.csv.quoting = True  # whether quotes enclose fields
    c.data.csv.extra = "error"  # fields beyond the columns: error | drop | join (to the last)
    c.data.on_bad_image = "error"  # error | skip: decode all once, print and leave out the bad
    c.data.workers = 0  # processes that read and decode; 0: a thread. The order is the same
    c.data.train = "train"  # TFDS split syntax, here and below
    c.data.validation = "validation"
    c.data.test = "test"
    # How images reach the model; 0, "", () and -1 take what the model's published weights want.
    c.data.image_size = 0  # side in pixels
    c.data.interpolation = ""  # nearest | bilinear | bicubic
    c.data.mean = ()  # per channel, of values in [0, 1]
    c.data.std = ()
    c.data.crop = -1.0  # share of the short side that the central square keeps; 0 squeezes instead
    # Texts: the model's tokenizer.json; empty looks beside the weight file.
    c.data.tokenizer = ""
    c.data.max_tokens = 0  # per input; 0: the model's own
    c.data.text_columns = ("text",)  # of an example: one text, or two
    # Text such as "random_crop(pad=4) + flip", or a list of such: on device, in training only, see
    # finetune_jax/data/augment.
    c.data.augment = config_dict.FieldReference("", field_type=Sequence)
    c.data.cache_bytes = 2**30  # decoded images are kept in memory up to this many bytes

    c.train = ml_collections.ConfigDict()
    c.train.batch_size = 128  # over all devices and hosts
    c.train.epochs = 10.0
    c.train.steps = 0  # > 0 overrides epochs
    c.train.accumulate = 1  # micro-batches per step

    c.optimizer = ml_collections.ConfigDict()
    c.optimizer.name = "sgd"  # sgd | adamw
    c.optimizer.learning_rate = 0.01
    c.optimizer.momentum = 0.9
    c.optimizer.nesterov = False
    c.optimizer.b1 = 0.9
    c.optimizer.b2 = 0.999
    c.optimizer.weight_decay = 0.0
    c.optimizer.schedule = "cosine"  # cosine | linear | constant | onecycle(...) | slanted(...)
    c.optimizer.warmup_steps = 0
    c.optimizer.clip_norm = 0.0  # 0: off; global norm of the trainable half
    c.optimizer.ema_decay = 0.0  # 0: off; of the trainable half, used for evaluation and artifact

    c.optimizer.sam_rho = 0.0  # 0: off; radius of sharpness-aware minimisation
    c.optimizer.l2_sp = 0.0  # 0: off; pull of trainable leaves towards their pretrained values
    c.optimizer.l2_sp_head = 0.0  # pull of re-initialised leaves towards 0

    # Activations after the frozen prefix, computed once and read in later epochs.
    c.prefix_cache = ml_collections.ConfigDict()
    c.prefix_cache.enabled = True
    c.prefix_cache.bytes = 2**30  # of one split in memory; more goes to `dir`, or is not cached
    c.prefix_cache.dir = ""  # folder kept between runs; empty uses memory alone
    c.prefix_cache.dir_bytes = 100 * 2**30  # the longest unused entries are removed beyond this
    c.prefix_cache.views = 0  # with data.augment: this many fixed views per image, one per epoch

    c.mesh = ml_collections.ConfigDict()
    c.mesh.data = -1  # devices per axis; -1 takes what is left
    c.mesh.fsdp = 1
    c.mesh.cpu_devices = 0  # split a CPU into this many devices; 0 leaves JAX's default

    c.eval = ml_collections.ConfigDict()
    c.eval.every_epochs = 1.0
    c.eval.batch_size = 256
    # Closed-form probes of the features at each evaluation, such as "knn(k=20) + few_shot(10)".
    c.eval.probes = ""

    c.checkpoint = ml_collections.ConfigDict()
    c.checkpoint.every_steps = 0  # 0: at every evaluation
    c.checkpoint.keep_last = 1
    c.checkpoint.keep_best = 1
    c.checkpoint.metric = ""  # validation score that names the best: the task's metric, or loss

    c.artifact = ml_collections.ConfigDict()
    c.artifact.contents = "all"  # all | delta: delta needs the base weight file to predict
    c.artifact.merge = False  # fold the deltas into the base, where the maths allows
    c.artifact.select = "last"  # last | best: the checkpoint it is made of

    c.log = ml_collections.ConfigDict()
    c.log.every_steps = 50
    c.log.tensorboard = True
    return c.lock()


def validate(config: ml_collections.ConfigDict) -> None:
    """Raises UserError for values that no later room checks by itself."""
    least = {
        "train.batch_size": 1,
        "train.accumulate": 1,
        "eval.batch_size": 1,
        "data.image_size": 0,
        "data.workers": 0,
        "data.split_seed": 0,
        "log.every_steps": 1,
        "checkpoint.keep_last": 1,
        "checkpoint.keep_best": 0,
        "checkpoint.every_steps": 0,
        "optimizer.warmup_steps": 0,
    }
    for key, low in least.items():
        if config[key] < low:
            raise UserError(
                f"{key}: expected a whole number of at least {low}, found {config[key]}"
            )
    if config.train.batch_size % config.train.accumulate:
        raise UserError(
            f"train.accumulate: {config.train.accumulate} does not divide the batch size "
            f"{config.train.batch_size}"
        )
    if config.train.steps <= 0 and config.train.epochs <= 0:
        raise UserError("train.epochs or train.steps must be positive")
    if not config.eval.every_epochs > 0:
        raise UserError(
            f"eval.every_epochs: expected a number > 0, found {config.eval.every_epochs}"
        )
    if not config.optimizer.learning_rate > 0:
        raise UserError(
            f"optimizer.learning_rate: expected a number > 0, found "
            f"{config.optimizer.learning_rate}; to freeze leaves use the scheme"
        )
    for key, low, high in (
        ("task.label_smoothing", 0, 1),
        ("optimizer.ema_decay", 0, 1),
        ("optimizer.momentum", 0, 1),
    ):
        if not low <= config[key] < high:
            raise UserError(f"{key}: expected a number in [{low}, {high}), found {config[key]}")
    for key in ("weight_decay", "clip_norm", "sam_rho", "l2_sp", "l2_sp_head"):
        if not config.optimizer[key] >= 0:
            raise UserError(
                f"optimizer.{key}: expected a number >= 0, found {config.optimizer[key]}"
            )
    choices = {
        "optimizer.name": ("sgd", "adamw"),
        "model.frozen_dtype": ("float32", "bfloat16"),
        "artifact.contents": ("all", "delta"),
        "artifact.select": ("last", "best"),
        "pretrained.head_init": ("", "zero", "lecun", "copy"),
        "data.interpolation": ("", "nearest", "bilinear", "bicubic"),
        "data.on_bad_image": ("error", "skip"),
        "data.label_kind": ("", "class", "classes", "number", "text"),
        "data.csv.extra": ("error", "drop", "join"),
    }
    if config.pretrained.head_init == "probe":
        raise UserError(
            "pretrained.head_init: a head that starts as a solved probe is a phase of the scheme, "
            "such as \"linear_probe + phase(solve='ridge') >> full\""
        )
    for key, valid in choices.items():
        if config[key] not in valid:
            raise UserError(f"{key}: unknown value {config[key]!r}.{nearest(config[key], valid)}")
    sep = config.data.csv.sep
    if len(sep) > 1 and sep not in ("tab", "comma", "space", "\\t"):
        raise UserError(
            f"data.csv.sep: expected one character, 'tab', 'comma' or 'space', found {sep!r}"
        )
    if not config.data.label_sep:
        raise UserError("data.label_sep: expected a text between two names, found ''")
    for key in ("mean", "std"):
        if len(config.data[key]) not in (0, 3) or not all(x > 0 for x in config.data.std):
            raise UserError(
                f"data.{key}: expected three numbers, of std above 0, found {config.data[key]}"
            )
    if not (config.data.crop == -1 or 0 <= config.data.crop <= 1):
        raise UserError(f"data.crop: expected a share in [0, 1], or -1, found {config.data.crop}")
    if config.artifact.select == "best" and not config.data.validation:
        raise UserError(
            "artifact.select: 'best' is chosen on validation, and data.validation is empty"
        )
    if config.artifact.select == "best" and not config.checkpoint.keep_best:
        raise UserError("artifact.select: 'best' needs checkpoint.keep_best of at least 1, found 0")
    if (config.pretrained.head_init == "copy") != bool(config.pretrained.class_names):
        raise UserError(
            f"pretrained.class_names: a file for head_init='copy' and for no other, found "
            f"{config.pretrained.class_names!r} and {config.pretrained.head_init!r}"
        )
    if config.artifact.contents == "delta" and not config.pretrained.path:
        raise UserError(
            "artifact.contents: 'delta' is what differs from a weight file, and pretrained.path is "
            "empty; expected 'all'"
        )


def to_json(config: ml_collections.ConfigDict) -> dict:
    """The resolved config as plain JSON values (tuples become lists)."""
    import json

    return json.loads(config.to_json_best_effort())


def from_json(values: dict) -> ml_collections.ConfigDict:
    """Rebuilds a config from `to_json`; keys of an older version that are gone raise UserError."""
    config = default()

    def fill(node: ml_collections.ConfigDict, given: dict, prefix: str) -> None:
        for key, value in given.items():
            if key not in node:
                raise UserError(f"unknown config key {prefix + key!r}.{nearest(key, node.keys())}")
            if isinstance(node[key], config_dict.ConfigDict):
                fill(node[key], value, f"{prefix}{key}.")
            else:
                with node.ignore_type():
                    node[key] = tuple(value) if isinstance(node[key], tuple) else value

    fill(config, values, "")
    return config


def difference(old: dict, new: dict, prefix: str = "") -> list[str]:
    """Lines ``key: old -> new`` for every differing leaf of two `to_json` dicts."""
    lines = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += difference(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {a!r} -> {b!r}")
    return lines
