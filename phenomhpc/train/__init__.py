"""Pretraining: the loop, its optimisers and schedule, ranks, checkpoints as they are written, metrics, the elastic launch."""
