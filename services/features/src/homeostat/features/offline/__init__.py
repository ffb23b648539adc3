"""The offline store: what is on a pipeline's topics, as Delta tables, each record exactly once."""
