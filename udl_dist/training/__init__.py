"""The training loop, its state and its ranks; imports no Ray, no W&B and no method by name."""
