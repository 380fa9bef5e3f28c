"""How metrics are written for people: `knn@20` -> `kNN@20`."""

_NAMES = {
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


def display_name(metric: str) -> str:
    """The metric as a heading or in a sentence; a metric without an entry is written as it is."""
    if metric in _NAMES:
        return _NAMES[metric]
    family, at, k = metric.partition("@")
    return f"{_NAMES.get(family, family)}{at}{k}"
