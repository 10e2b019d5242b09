"""GLUE: RoBERTa-base with LoRA, BERT-large with BitFit, and both in full.

Command (TFDS holds the data; the weights come from the hub, tokenizer.json beside them):
  python -m finetune_jax.train --config=configs/pods/glue.py:sst2,lora --workdir=DIR

LoRA (Hu et al. 2021, arXiv 2106.09685), from its scripts: r=8, alpha=16 on query and value, 512
tokens, linear decay, warm-up 6 %, decay 0.1. Rates, epochs and texts per step depend on the task;
the values of SST-2 and CoLA are recalled from memory. LoRA's MRPC, RTE and STS-B start from an
adapter of MNLI and have no config here. BitFit (Ben Zaken et al. 2021, arXiv 2106.10199): rate
1e-3, 8 texts per step, 16 epochs, 128 tokens. Full fine-tuning: rate 2e-5 for RoBERTa and 1e-5 for
BERT. Published figures: experiments/glue_lora_bitfit.py. Not run (needs an accelerator, data and
weights).

The test labels of GLUE are secret: as in the papers the validation split is scored, once, after
training on all of train; to choose a rate, keep some of train back and leave data.test empty.
"""

from finetune_jax.configs.pods._argument import arguments, read_argument

from finetune_jax.config import default
from finetune_jax.errors import UserError

# Training examples, and columns of the texts in TFDS.
TASKS = {
    "sst2": (67_349, ("sentence",)),
    "cola": (8_551, ("sentence",)),
    "mrpc": (3_668, ("sentence1", "sentence2")),
    "rte": (2_490, ("sentence1", "sentence2")),
    "qnli": (104_743, ("question", "sentence")),
    "qqp": (363_849, ("question1", "question2")),
    "mnli": (392_702, ("premise", "hypothesis")),
    "stsb": (5_749, ("sentence1", "sentence2")),
}
# Rate, epochs and texts per step.
LORA = {
    "mnli": (5e-4, 30.0, 128),
    "sst2": (5e-4, 60.0, 128),
    "cola": (4e-4, 80.0, 256),
    "qnli": (4e-4, 25.0, 256),
    "qqp": (5e-4, 25.0, 128),
}
# The first layer of RoBERTa's classifier is the stage `pooler` here; the file has another pooler.
METHODS = {
    "full_roberta": ("roberta_base", "full", 512, 0.1),
    "lora": (
        "roberta_base", "lora(rank=8, alpha=16, on='query|value') + stages('pooler', 'head')",
        512, 0.1,
    ),
    "full_bert": ("bert_large_uncased", "full", 128, 0.01),
    "bitfit": ("bert_large_uncased", "bias_only", 128, 0.0),
}  # fmt: skip
RATES = {"full_roberta": (2e-5, 10.0, 16), "full_bert": (1e-5, 16.0, 8), "bitfit": (1e-3, 16.0, 8)}
WEIGHTS = {
    "roberta_base": "hf:FacebookAI/roberta-base",
    "bert_large_uncased": "hf:google-bert/bert-large-uncased",
}
ARGUMENTS = tuple(
    a for a in arguments(TASKS, METHODS) if not a.endswith(",lora") or a.split(",")[0] in LORA
)


def get_config(argument="sst2,lora"):
    task, method = read_argument(argument, TASKS, METHODS)
    if argument not in ARGUMENTS:
        raise UserError(f"{argument!r}: LoRA's {task} starts from an adapter of MNLI, not of here")
    examples, columns = TASKS[task]
    model, scheme, tokens, decay = METHODS[method]
    rate, epochs, batch = LORA[task] if method == "lora" else RATES[method]
    config = default()
    config.scheme = scheme
    config.model.name = model
    config.model.dropout = 0.1
    config.frozen_dropout = "train"  # as in PyTorch, where frozen layers keep their dropout
    config.pretrained.path = WEIGHTS[model]
    config.pretrained.new_head = True
    config.data.source = f"tfds:glue/{task}"
    config.data.text_columns = columns
    config.data.max_tokens = tokens
    config.data.train, config.data.validation = "train", ""
    config.data.test = "validation"
    if task == "mnli":
        # LoRA's table has the mean over both kinds of test texts, BitFit's table only the first.
        both = "validation_matched+validation_mismatched"
        config.data.test = both if model == "roberta_base" else "validation_matched"
    if task == "stsb":
        config.task.name = "regression"
    config.train.batch_size = batch
    config.train.epochs = epochs
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = rate
    config.optimizer.weight_decay = decay
    config.optimizer.schedule = "linear"
    config.optimizer.warmup_steps = round(0.06 * epochs * examples / batch)
    config.checkpoint.keep_best = 0
    return config
