"""The masked autoencoder and its checkpoints, as far as reading goes: torch and nothing of ours but errors."""
