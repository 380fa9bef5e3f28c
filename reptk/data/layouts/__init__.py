"""Which images a folder, a table or a set of shards has, with their labels and splits."""
