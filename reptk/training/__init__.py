"""Training: from a recipe to a run folder with weights and numbers."""
