"""How any stage runs: keys, store, runner, events. Knows nothing of language models."""
