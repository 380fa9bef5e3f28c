"""Batches read ahead of the training step."""
