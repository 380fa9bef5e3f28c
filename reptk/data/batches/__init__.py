"""Which images are in a batch: orders and samplers, as functions of the seed."""
