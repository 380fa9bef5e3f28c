"""One file per metric: the function for scripts, and the evaluator that recipes name."""
