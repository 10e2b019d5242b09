"""One scheme, model, name map, task, loss and data source for finetune_jax, from outside."""
