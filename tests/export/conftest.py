"""Fixtures of tests/embedding_inputs.py, and the run of a classifier."""

from pathlib import Path

import pytest

from embedding_inputs import photo_folder

__all__ = ["classifier_run", "photo_folder"]

RECIPE = """name = "mine"
seed = 3
[data]
name = "folder"
root = "{root}"
[encoder]
backbone = "test_resnet"
[method]
name = "joint"
[loss]
name = "supcon"
[train]
epochs = 2
[trackers.mlflow]
uri = "postgresql://me:secret@host/db"
"""

RESULTS = """{
"headline": "knn@20",
"metrics": {"untrained": {"knn@20": 0.5}, "trained": {"knn@20": 0.75, "map@r": 0.4}},
"intervals": {"trained": {"knn@20": [0.7, 0.8]}},
"verdict": {"level": "good", "sentence": "Training helped."},
"protocol": {"recipe": "mine", "data": {"name": "folder", "root": "/home/somebody/photos"}, "images": {"bank": 8, "query": 4},
"classes": 3, "intervals": "95 %", "versions": {"torch": "2.14.1"}, "commit": "abc"}
}"""


@pytest.fixture(scope="session")
def classifier_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a finished run that has trained a classifier, on a folder of photos that is gone."""
    import torch

    from reptk.core import rng
    from reptk.models.classifier import classifier_bytes
    from reptk.models.encoder import Encoder

    folder = tmp_path_factory.mktemp("runs") / "mine"
    with rng.seeded(7, "weights"):
        encoder = Encoder("test_resnet", size=32, head_out=16)
        classifier = torch.nn.Linear(encoder.num_features, 3)
        with torch.no_grad():
            encoder(torch.rand(8, 3, 32, 32))  # running statistics
    encoder.save(folder / "model", classifier_bytes(classifier, ("cats", "dogs", "birds")))
    (folder / "recipe.toml").write_text(RECIPE.format(root=folder.parent / "gone"))
    (folder / "results.json").write_text(RESULTS)
    return folder
