"""Training: builds what a recipe names, trains it, and writes a run folder with weights and results."""
