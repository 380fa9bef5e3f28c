"""The arithmetic under the losses: row statistics of a batch without an N x N matrix."""
