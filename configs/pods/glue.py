"""GLUE: RoBERTa-base with LoRA, BERT with BitFit, and both in full.

Command (TFDS holds the data; the weights come from the hub, tokenizer.json beside them):
  python -m finetune_jax.train --config=configs/pods/glue.py:sst2,lora --workdir=DIR

Hu et al. 2021 (arXiv 2106.09685, README): LoRA r=8 on query and value, AdamW at 5e-4, linear decay,
warm-up 6 %. Ben Zaken et al. 2021 (arXiv 2106.10199): AdamW at 1e-3, 8 texts, 16 epochs, 128
tokens. Published figures: experiments/glue_lora_bitfit.py. The test labels of GLUE are secret:
scores are of its validation split, and rates are chosen on a tenth of training. Not run here.
"""

from finetune_jax.config import default

# Columns of the texts in TFDS.
TASKS = {
    "sst2": ("sentence",),
    "cola": ("sentence",),
    "mrpc": ("sentence1", "sentence2"),
    "rte": ("sentence1", "sentence2"),
    "qnli": ("question", "sentence"),
    "qqp": ("question1", "question2"),
    "mnli": ("premise", "hypothesis"),
    "stsb": ("sentence1", "sentence2"),
}
METHODS = {
    "full_roberta": ("roberta_base", "full", 2e-5, 16, 10.0),
    "lora": ("roberta_base", "lora(rank=8, alpha=8, on='query|value') + head", 5e-4, 16, 30.0),
    "full_bert": ("bert_large_uncased", "full", 1e-5, 16, 16.0),
    "bitfit": ("bert_large_uncased", "bias_only", 1e-3, 8, 16.0),
}
WEIGHTS = {
    "roberta_base": "hf:FacebookAI/roberta-base",
    "bert_large_uncased": "hf:google-bert/bert-large-uncased",
}


def get_config(argument="sst2,lora"):
    task, method = argument.split(",")
    model, scheme, rate, batch, epochs = METHODS[method]
    config = default()
    config.scheme = scheme
    config.model.name = model
    config.model.dropout = 0.1
    config.pretrained.path = WEIGHTS[model]
    config.pretrained.new_head = True
    config.data.source = f"tfds:glue/{task}"
    config.data.text_columns = TASKS[task]
    config.data.max_tokens = 128
    config.data.train, config.data.validation = "train[:90%]", "train[90%:]"
    config.data.test = "validation_matched" if task == "mnli" else "validation"
    if task == "stsb":
        config.task.name = "regression"
    config.train.batch_size = batch
    config.train.epochs = epochs
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = rate
    config.optimizer.schedule = "linear"
    config.optimizer.warmup_steps = 500
    return config
