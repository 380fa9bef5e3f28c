"""Names of metrics in headings and sentences: `knn@20` is written `kNN@20`."""

_NAMES = {
    "accuracy": "Accuracy",
    "knn": "kNN",
    "knn_majority": "majority",
    "recall": "Recall",
    "precision": "Precision",
    "view_recall": "View recall",
    "mrr": "MRR",
    "map@r": "mAP@R",
    "r_precision": "R-prec.",
    "linear": "Linear",
    "linear_stage": "Linear stage",
    "few_shot": "Few-shot",
    "few_shot_std": "Few-shot std",
}


def is_share(metric: str) -> bool:
    """Return whether a metric is known to lie between 0 and 1, as all metrics of reptk do; those of plugins may be anything."""
    return metric in _NAMES or metric.partition("@")[0] in _NAMES


def display_name(metric: str) -> str:
    """Return the name of a metric for a heading or a sentence; one that is not known here is returned as it is."""
    if metric in _NAMES:  # also names with an "@" of their own, such as map@r
        return _NAMES[metric]
    family, at, k = metric.partition("@")
    return f"{_NAMES.get(family, family)}{at}{k}"
