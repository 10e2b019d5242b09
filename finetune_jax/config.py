"""The one configuration every command reads: all keys, their types and their defaults.

A file in ``configs/`` starts from `default()` and changes some keys. The config is locked: a key
that is not listed here is refused, and the error names the nearest key.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import ml_collections
from ml_collections import config_dict

from finetune_jax import schema
from finetune_jax.doors import is_door
from finetune_jax.errors import UserError, nearest


def default() -> ml_collections.ConfigDict:
    """Returns a new, locked config with the default of every key."""
    c = ml_collections.ConfigDict()
    c.seed = 0  # of new leaves, of the order of the examples, of augmentation and of dropout

    # The scheme: which leaves train (finetune_jax/schemes). A text such as
    # "last_k(2) + stages('stem')", phases such as
    # "linear_probe + phase(epochs=2) >> full + phase(lr=0.1)", a program such as "lp_ft", or
    # ordered rules [("head/.*", "head(lr=10)"), (".*", "frozen")], as a list or as a text.
    c.scheme = config_dict.FieldReference("full", field_type=Sequence)
    # Statistics of BatchNorm: frozen keeps those of stages in which no BatchNorm trains, frozen_all
    # keeps all, track updates all, reestimate computes all anew after training.
    c.batch_norm = "frozen"
    c.frozen_dropout = "eval"  # dropout of frozen stages: eval (off) | train (on)
    c.decay_mask = ".*kernel|.*/lora_[ab]"  # regex of the leaf paths that weight decay applies to

    c.model = ml_collections.ConfigDict()
    # A name of the registry, or a kind of model whose sizes are options: bert, roberta, vit,
    # resnet, convnext, convnextv2. Options are written "vit(width=192, depth=4, heads=3, patch=8)";
    # those that are left out come from config.json beside the weights, or from their shapes.
    c.model.name = "resnet20_cifar"
    c.model.dtype = "float32"  # compute dtype; trainable leaves always keep f32 masters
    # Storage of frozen leaves: float32 | bfloat16. Or of frozen kernels and tables of embeddings:
    # int8 | fp8 | int4 | nf4; the other frozen leaves are then float32.
    c.model.frozen_dtype = "float32"
    c.model.remat = False  # recompute activations in the backward pass: less memory, more time
    c.model.dropout = 0.0  # rate in [0, 1), for models that have dropout
    # Pooling of tokens: cls, mean or pooler for texts, token, gap or token_gap for a vit; "": that
    # of the pooling file of sentence-transformers beside the weights, or that of the model.
    c.model.pooling = ""
    c.model.head = ""  # for families with several heads, such as VGG's gap_linear; "": the default

    c.pretrained = ml_collections.ConfigDict()
    # Weight file, or another source (finetune_jax/pretrained/sources); published: the weights that
    # the catalogue names for the model; empty trains from scratch.
    c.pretrained.path = ""
    # Names of the file's tensors: an origin such as "timm", or "package.module:NAME" of a NameMap;
    # empty takes the origin that knows most of them.
    c.pretrained.name_map = ""
    # Of a file with several sets of weights, the set to load: raw | ema | teacher | student; empty
    # takes raw before ema and DINO's teacher before its student, and says so.
    c.pretrained.weights = ""
    # Text before the names of the model's tensors, such as "module.encoder_q."; tensors without it
    # are matched without it or dropped. Empty takes off what all known names begin with.
    c.pretrained.prefix = ""
    # Regex of whole names of tensors to drop, such as "aux.*|head_dist.*"; none may be needed.
    c.pretrained.ignore = ""
    # Folder of an adapter of peft (LoRA or IA3) over the weight file, or hf:OWNER/NAME. Its deltas
    # are in place in all phases, frozen unless a term such as "deltas" trains them; its head and
    # other leaves take the place of those of the file.
    c.pretrained.adapter = ""
    c.pretrained.new_head = False  # re-initialise the head even where its shape fits
    # Start values of a new head: "" (the initialiser of the model), zero, lecun, or copy. With
    # copy, a class whose name is in the file `class_names` takes the row of the weight file; the
    # file lists the class names of the weight file in order.
    c.pretrained.head_init = ""
    c.pretrained.class_names = ""  # path of this file
    # Compare the BatchNorm statistics of the file with those of the first training images.
    c.pretrained.check_statistics = False
    # Leaves that may be resized for another input size: position, patch, channels.
    c.pretrained.resize = ("position",)

    c.task = ml_collections.ConfigDict()
    # classification | multilabel | ordinal | regression | segmentation | similarity, and
    # tasks of pre-training: simclr | supcon | mae
    c.task.name = "classification"
    # Training loss, such as "focal(gamma=2)" or "distill(teacher='runs/x', temperature=2)"; empty:
    # the first loss of the task (finetune_jax/tasks).
    c.task.loss = ""
    c.task.neck = 0  # segmentation: width of a convolution before the head; 0: a linear head
    c.task.num_classes = 0  # 0: the number of the data source; another number must be equal to it
    c.task.label_smoothing = 0.0  # in [0, 1)

    c.data = ml_collections.ConfigDict()
    # digits | tfds:NAME[/CONFIG][:VERSION] | folder:PATH | csv:PATH | hf:OWNER/NAME[:CONFIG].
    # finetune_jax/data/source_*.py says what each source reads and how the source is split.
    c.data.source = "digits"
    c.data.data_dir = ""  # folder of TFDS or of the hub's cache; empty: the default of the library
    c.data.prepare = False  # tfds and hf: download and prepare a missing data set
    # Column of tfds, csv and hf with the image; a csv file has paths of images. Two columns,
    # "left,right", are the pairs that task.name="similarity" compares.
    c.data.image_column = "image"
    c.data.label_column = "label"  # column of tfds, csv and hf with the label
    c.data.mask_column = "mask"  # column of tfds and hf with the mask of each image
    # In place of label_column, columns of 0 and 1 that are the classes, in this order: one-hot
    # columns, or, for task.name="multilabel", labels of which an empty field is unknown: it is left
    # out of the loss and of the scores. For csv, hf and tfds.
    c.data.label_columns = ()
    # Kind of the labels of csv and hf: class | classes (several names joined by label_sep) | number
    # | text; empty: class or number, inferred.
    c.data.label_kind = ""
    c.data.label_sep = "|"  # text between the names of one example
    c.data.label_until = ""  # a label ends before this text; empty: it is the whole field
    # Names of the classes in the order of their numbers, which is the order of an ordinal task;
    # empty: sorted, as numbers if all names are numbers. A name in this list may be a text that
    # stands for a missing value elsewhere, such as "NA".
    c.data.class_order = ()
    # Text file with a line for each class, in order: its name in the data; or a new name and, after
    # it and separated by tabs, the names in the data that become this class. Examples of classes
    # without a line are left out. Empty: all classes of the data.
    c.data.classes = ""
    c.data.split_seed = 0  # seed of 80/10/10 splits and of their order; not the seed of the run
    c.data.csv = ml_collections.ConfigDict()
    # One character, or tab | comma | space; empty: tab for .tsv, else comma, or what the first
    # lines show.
    c.data.csv.sep = ""
    c.data.csv.header = ()  # names of the columns of a file without a header row
    c.data.csv.encoding = "utf-8"  # a byte order mark of UTF-8, UTF-16 or UTF-32 goes first
    c.data.csv.quoting = True  # whether quotes enclose fields
    c.data.csv.extra = "error"  # fields beyond the columns: error | drop | join (to the last)
    c.data.on_bad_image = "error"  # error | skip: decode all once, then print and skip bad images
    c.data.max_pixels = 64_000_000  # width times height of the largest image that is decoded
    c.data.workers = 0  # processes that read and decode; 0: a thread. The order never changes
    c.data.train = "train"  # split to train on, in the syntax of TFDS, such as "train[:80%]"
    c.data.validation = "validation"  # split that chooses checkpoints and hyper-parameters
    c.data.test = "test"  # split that is scored once, at the end; empty: none
    # Preprocessing of images; the defaults take the values of the model's published weights.
    c.data.image_size = 0  # side in pixels; 0: that of the published weights
    # nearest | bilinear | bicubic | lanczos | box | hamming; empty: that of the published weights.
    c.data.interpolation = ""
    c.data.mean = ()  # per channel, for pixel values in [0, 1]; empty: of the published weights
    c.data.std = ()  # per channel, for pixel values in [0, 1]; empty: of the published weights
    # Central square as a share of the short side; 0 resizes without a crop; -1: the share of the
    # published weights.
    c.data.crop = -1.0
    # Texts: path of the model's tokenizer.json; empty: the file beside the weight file.
    c.data.tokenizer = ""
    c.data.max_tokens = 0  # per input; 0: the number of the model
    c.data.text_columns = ("text",)  # one or two columns of an example
    # Augmentation, on device and in training only: a text such as "random_crop(pad=4) + flip", or a
    # list of such texts (finetune_jax/data/augment).
    c.data.augment = config_dict.FieldReference("", field_type=Sequence)
    c.data.cache_bytes = 2**30  # most bytes of decoded images in memory

    c.train = ml_collections.ConfigDict()
    c.train.batch_size = 128  # over all devices and hosts
    c.train.epochs = 10.0  # passes over the training split; parts of a pass are allowed
    c.train.steps = 0  # steps of the optimizer; above 0 it overrides epochs
    c.train.accumulate = 1  # micro-batches per step
    # How a run reacts to a step that is not finite, or whose loss is above 1e6 times the larger of
    # 1 and the first loss: stop keeps the batch and the state of the step in the run folder and
    # ends the run; skip drops the update of a step that is not finite (and stops at a finite
    # divergence); back_up goes back to the latest checkpoint and leaves out the batches up to this
    # step.
    c.train.on_nan = "stop"  # stop | skip | back_up
    c.train.nan_limit = 10  # most steps in a row that skip drops, and most returns of back_up

    c.optimizer = ml_collections.ConfigDict()
    c.optimizer.name = "sgd"  # sgd | adamw
    c.optimizer.learning_rate = 0.01  # highest rate; groups of the scheme multiply it
    c.optimizer.momentum = 0.9  # of sgd, in [0, 1)
    c.optimizer.nesterov = False  # Nesterov momentum of sgd
    c.optimizer.b1 = 0.9  # of adamw: decay of the mean of gradients
    c.optimizer.b2 = 0.999  # of adamw: decay of the mean of squared gradients
    c.optimizer.weight_decay = 0.0  # decoupled, times the learning rate, on leaves of decay_mask
    c.optimizer.schedule = "cosine"  # cosine | linear | constant | onecycle(...) | slanted(...)
    c.optimizer.warmup_steps = 0  # steps in which the rate rises from 0 to its highest value
    c.optimizer.clip_norm = 0.0  # 0: off; limit of the global norm of trainable gradients
    c.optimizer.ema_decay = (
        0.0  # 0: off; average of the trainable half, for evaluation and artifact
    )

    c.optimizer.sam_rho = 0.0  # 0: off; radius of sharpness-aware minimisation
    c.optimizer.l2_sp = 0.0  # 0: off; pull of trainable leaves towards their pretrained values
    c.optimizer.l2_sp_head = 0.0  # pull of re-initialised leaves towards 0

    # The activations after the frozen prefix are computed once and read in later epochs.
    c.prefix_cache = ml_collections.ConfigDict()
    c.prefix_cache.enabled = True
    c.prefix_cache.bytes = (
        2**30
    )  # most bytes of one split in memory; a larger split is cached in `dir`, or not
    c.prefix_cache.dir = ""  # folder that is kept between runs; empty: memory only
    c.prefix_cache.dir_bytes = (
        100 * 2**30
    )  # above this size the least recently used entries are removed
    c.prefix_cache.views = 0  # with data.augment: number of fixed views per image, one per epoch

    c.mesh = ml_collections.ConfigDict()
    c.mesh.data = -1  # devices that split the batch; -1: all devices divided by mesh.fsdp
    c.mesh.fsdp = 1  # devices that split large leaves and their moments
    c.mesh.cpu_devices = 0  # split a CPU into this number of devices; 0: JAX's default

    c.eval = ml_collections.ConfigDict()
    c.eval.every_epochs = 1.0  # epochs between two evaluations on the validation split
    c.eval.batch_size = 256  # over all devices and hosts
    # Closed-form probes of the features at each evaluation, such as "knn(k=20) + few_shot(10)".
    c.eval.probes = ""

    c.checkpoint = ml_collections.ConfigDict()
    c.checkpoint.every_steps = 0  # 0: at every evaluation
    c.checkpoint.keep_last = 2  # latest checkpoints to keep; an older one replaces a damaged one
    c.checkpoint.keep_best = 1  # checkpoints with the best scores to keep
    c.checkpoint.metric = ""  # validation score that ranks checkpoints: loss, or "": the task's

    c.artifact = ml_collections.ConfigDict()
    c.artifact.contents = "all"  # all | delta: prediction from a delta needs the base weight file
    c.artifact.merge = False  # merge the deltas into the base weights, if they can be merged
    c.artifact.select = "last"  # last | best: which checkpoint the artifact is made from
    # Weights of the artifact in few bits: int8 | fp8 | int4 | nf4, or rules such as "head=keep,
    # .*=int4(tile=32)"; the scores are those of the quantized model. "": as the last phase trained.
    c.artifact.quantize = ""

    c.log = ml_collections.ConfigDict()
    c.log.every_steps = 0  # steps between two rows of metrics.jsonl; 0: twenty or more rows a run
    c.log.tensorboard = True  # write TensorBoard events too
    return c.lock()


_LEAST = {
    "train.batch_size": 1,
    "train.accumulate": 1,
    "train.nan_limit": 1,
    "eval.batch_size": 1,
    "data.image_size": 0,
    "data.workers": 0,
    "data.max_pixels": 1,
    "data.split_seed": 0,
    "data.cache_bytes": 0,
    "prefix_cache.bytes": 0,
    "prefix_cache.dir_bytes": 0,
    "log.every_steps": 0,
    "checkpoint.keep_last": 1,
    "checkpoint.keep_best": 0,
    "checkpoint.every_steps": 0,
    "optimizer.warmup_steps": 0,
}
"""Smallest value of each key that holds a whole number."""

_NOT_NEGATIVE = ("weight_decay", "clip_norm", "sam_rho", "l2_sp", "l2_sp_head")
"""Keys of ``config.optimizer`` whose value is a number >= 0."""

_FRACTIONS = ("task.label_smoothing", "optimizer.ema_decay", "optimizer.momentum")
"""Keys whose value is a number in [0, 1)."""

_CHOICES = {
    "optimizer.name": ("sgd", "adamw"),
    "train.on_nan": ("stop", "skip", "back_up"),
    "model.frozen_dtype": ("float32", "bfloat16", "int8", "fp8", "int4", "nf4"),
    "artifact.contents": ("all", "delta"),
    "artifact.select": ("last", "best"),
    "pretrained.weights": ("", "raw", "ema", "teacher", "student"),
    "pretrained.head_init": ("", "zero", "lecun", "copy"),
    "data.interpolation": ("", "nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"),
    "data.on_bad_image": ("error", "skip"),
    "data.label_kind": ("", "class", "classes", "number", "text"),
    "data.csv.extra": ("error", "drop", "join"),
}
"""Valid values of each key that holds one of several texts."""


def validate(config: ml_collections.ConfigDict) -> None:
    """Raises UserError for a bad value of a key that no other module checks."""
    _check_finite(config)
    _check_numbers(config)
    _check_choices(config)
    _check_data(config)
    _check_combinations(config)
    if not config.scheme:
        raise UserError(
            "scheme: expected what trains, such as 'last_k(1)' or 'full' for everything, found "
            f"{config.scheme!r}"
        )


def _check_finite(config: ml_collections.ConfigDict, prefix: str = "") -> None:
    for key, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            _check_finite(value, f"{prefix}{key}.")
        elif isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{prefix}{key}: expected a finite number, found {value}")


def _check_numbers(config: ml_collections.ConfigDict) -> None:
    for key, least in _LEAST.items():
        if config[key] < least:
            raise UserError(
                f"{key}: expected a whole number of at least {least}, found {config[key]}"
            )
    for key in ("seed", "data.split_seed"):
        if not -(2**31) <= config[key] < 2**31:
            raise UserError(
                f"{key}: expected a whole number from {-(2**31)} to {2**31 - 1}, found "
                f"{config[key]}"
            )
    for key in _FRACTIONS:
        if not 0 <= config[key] < 1:
            raise UserError(f"{key}: expected a number in [0, 1), found {config[key]}")
    for key in _NOT_NEGATIVE:
        if not config.optimizer[key] >= 0:
            raise UserError(
                f"optimizer.{key}: expected a number >= 0, found {config.optimizer[key]}"
            )
    if not config.eval.every_epochs > 0:
        raise UserError(
            f"eval.every_epochs: expected a number > 0, found {config.eval.every_epochs}"
        )
    if not config.optimizer.learning_rate > 0:
        raise UserError(
            f"optimizer.learning_rate: expected a number > 0, found "
            f"{config.optimizer.learning_rate}; to freeze leaves use the scheme"
        )
    if config.train.steps <= 0 and config.train.epochs <= 0:
        raise UserError("train.epochs or train.steps must be positive")


def _check_choices(config: ml_collections.ConfigDict) -> None:
    if config.pretrained.head_init == "probe":
        raise UserError(
            "pretrained.head_init: a head that starts as a solved probe is a phase of the scheme, "
            "such as \"linear_probe + phase(solve='ridge') >> full\""
        )
    for key, valid in _CHOICES.items():
        if config[key] not in valid:
            raise UserError(f"{key}: unknown value {config[key]!r}.{nearest(config[key], valid)}")


def _check_data(config: ml_collections.ConfigDict) -> None:
    sep = config.data.csv.sep
    if len(sep) > 1 and sep not in ("tab", "comma", "space", "\\t"):
        raise UserError(
            f"data.csv.sep: expected one character, 'tab', 'comma' or 'space', found {sep!r}"
        )
    if not config.data.label_sep:
        raise UserError("data.label_sep: expected a text between two names, found ''")
    for key in ("mean", "std"):
        values = tuple(config.data[key])
        if len(values) not in (0, 3) or (key == "std" and not all(x > 0 for x in values)):
            above = " above 0" * (key == "std")
            raise UserError(f"data.{key}: expected three numbers{above}, found {values}")
    if not all(0 <= x <= 1 for x in (*config.data.mean, *config.data.std)):
        raise UserError(
            f"data.mean, data.std: expected values in [0, 1], found {tuple(config.data.mean)} and "
            f"{tuple(config.data.std)}; divide values for pixels of 0 to 255 by 255"
        )
    if not (config.data.crop == -1 or 0 <= config.data.crop <= 1):
        raise UserError(f"data.crop: expected a share in [0, 1], or -1, found {config.data.crop}")


def _check_combinations(config: ml_collections.ConfigDict) -> None:
    if config.train.batch_size % config.train.accumulate:
        raise UserError(
            f"train.accumulate: {config.train.accumulate} does not divide the batch size "
            f"{config.train.batch_size}"
        )
    task = config.task
    if task.label_smoothing and task.name != "classification" and not is_door(task.name):
        raise UserError(
            f"task.label_smoothing: {task.label_smoothing} smooths classes, and the task "
            f"{task.name!r} has none; expected 0"
        )
    if config.artifact.select == "best" and not config.data.validation:
        raise UserError(
            "artifact.select: 'best' is chosen by a score of the validation split, and "
            "data.validation is empty"
        )
    if config.artifact.select == "best" and not config.checkpoint.keep_best:
        raise UserError("artifact.select: 'best' needs checkpoint.keep_best of at least 1, found 0")
    if (config.pretrained.head_init == "copy") != bool(config.pretrained.class_names):
        raise UserError(
            f"pretrained.class_names: expected a file with head_init='copy' and no file with any "
            f"other; found {config.pretrained.class_names!r} with head_init="
            f"{config.pretrained.head_init!r}"
        )
    for key in ("weights", "prefix", "ignore"):
        if config.pretrained[key] and not config.pretrained.path:
            raise UserError(
                f"pretrained.{key}: {config.pretrained[key]!r} chooses tensors of a weight file, "
                "and pretrained.path is empty"
            )
    if config.pretrained.adapter and not config.pretrained.path:
        raise UserError(
            f"pretrained.adapter: {config.pretrained.adapter!r} lies over a weight file, and "
            f"pretrained.path is empty"
        )
    if config.artifact.contents == "delta" and not config.pretrained.path:
        raise UserError(
            "artifact.contents: 'delta' stores the difference from a weight file, and "
            "pretrained.path is empty; expected 'all'"
        )


def keys(config: ml_collections.ConfigDict, prefix: str = "") -> Iterator[str]:
    """Yields the names of all keys, such as ``optimizer.learning_rate``."""
    for key, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            yield from keys(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def to_json(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Returns the resolved config as plain JSON values; tuples become lists."""
    return json.loads(config.to_json_best_effort())


def from_json(values: dict[str, Any]) -> ml_collections.ConfigDict:
    """Returns the config of a `to_json` object, whose values need not be ours.

    Raises:
      UserError: the object has a key that this version does not have, or a value of another type
        than its default; names the key. `validate` checks ranges.
    """
    config = default()

    def fill(node: ml_collections.ConfigDict, given: Any, prefix: str) -> None:
        for key, value in schema.an_object(given, prefix.rstrip(".") or "config").items():
            if key not in node:
                hint = nearest(key[:80], node.keys())
                raise UserError(f"unknown config key {prefix + key[:80]!r}.{hint}")
            if isinstance(node[key], config_dict.ConfigDict):
                fill(node[key], value, f"{prefix}{key}.")
            else:
                with node.ignore_type():
                    node[key] = _check_of(prefix + key, node[key])(value, prefix + key)

    fill(config, values, "")
    return config


def _check_of(key: str, default: Any) -> schema.Check:
    """The check of a key, by the type of its default."""
    if key in ("scheme", "data.augment"):
        return _text_or_list
    if isinstance(default, tuple):
        numbers = key in ("data.mean", "data.std")
        return schema.list_of(schema.number() if numbers else schema.text(), most=1000)
    for kind, check in _CHECKS.items():
        if isinstance(default, kind):
            return check
    raise TypeError(f"{key}: no check for a default of {type(default).__name__}")


def _text_or_list(value: Any, key: str) -> Any:
    """A text, or a list of texts and of lists of texts, such as the rules of a scheme."""
    if isinstance(value, str):
        return schema.text(10**6)(value, key)
    many = schema.list_of(schema.text(10**6))
    rules = schema.list_of(lambda x, k: x if isinstance(x, str) else list(many(x, k)))
    return list(rules(value, key))


_CHECKS: dict[type, schema.Check] = {
    bool: schema.flag,  # before int, of which bool is a subclass
    int: schema.integer(-(2**63), 2**63 - 1),
    float: schema.number(),
    str: schema.text(10**6),
}


def completed(values: dict[str, Any]) -> dict[str, Any]:
    """Returns a `to_json` object with the defaults of the keys that an older version did not have.

    A key whose value has another form than in this version is kept as it is.
    """

    def fill(node: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
        filled = {**defaults, **node}
        for key, value in defaults.items():
            if isinstance(value, dict) and isinstance(filled[key], dict):
                filled[key] = fill(filled[key], value)
        return filled

    return fill(values, to_json(default()))


def difference(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Returns a line ``key: old -> new`` for every key in which two `to_json` objects differ."""
    lines = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += difference(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {a!r} -> {b!r}")
    return lines
