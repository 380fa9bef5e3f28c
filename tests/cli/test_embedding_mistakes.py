"""What reptk embed, index and search report when they are used wrongly: one message, the exit code, and no file left."""

import re
from pathlib import Path

import pytest
import torch

from embedding_inputs import run_command
from reptk.embeddings import Embeddings

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:.*has random weights")]


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["embed", "RUN", "--data", "PHOTOS"], 2, "--out"),
        (["embed", "RUN", "--data", "PHOTOS", "--out", "e.npz"], 2, ".safetensors or .parquet"),
        (["embed", "RUN", "--data", "PHOTOS", "--out", "no/e.safetensors"], 4, "there is no folder"),
        (["embed", "RUN", "--data", "PHOTOS", "--out", "e.safetensors", "--pretrained"], 2, "a run has its own"),
        (["embed", "RUN", "--data", "PHOTOS", "--out", "e.safetensors", "--batch-size", "0"], 2, "batch_size"),
        (
            ["embed", "RUN", "--data", "PHOTOS", "--out", "e.safetensors", "--split", "query"],
            3,
            "no query split, only train",
        ),
        (["embed", "RUN", "--data", "digits", "--out", "e.safetensors", "--split", "test"], 2, "--split must be"),
        (["embed", "RUN", "--data", "digit", "--out", "e.safetensors"], 3, "Nearest: digits"),
        (["embed", "RUN", "--data", "EMPTY", "--out", "e.safetensors"], 3, "it is empty"),
        (["embed", "RUN", "--out", "e.safetensors", "train.epochs=3"], 2, "what can be set here"),
        (["embed", "test_resnet", "--out", "e.safetensors"], 2, "which images?"),
        (["embed", "test_resnet", "data=5", "--out", "e.safetensors"], 2, "data is a table"),
        (["embed", "RUN", "--data", "PHOTOS", "data=x", "--out", "e.safetensors"], 2, "data is a table"),
        (["embed", "RUN", "--data", "PHOTOS", "--out", "e.safetensors", "--workers", "-1"], 2, "workers at least 0"),
        (["embed", "BROKEN_RUN", "--out", "e.safetensors"], 2, "data must be a table, got 3"),
        (["embed", "x" * 300, "--data", "digits", "--out", "e.safetensors"], 4, "File name too long"),
        (["embed", "~nobody/run", "--data", "digits", "--out", "e.safetensors"], 3, "no run or model in ~nobody/run"),
        (["embed", "test_resnt", "--data", "digits", "--out", "e.safetensors"], 2, "Nearest: test_resnet"),
        (["embed", "no/run", "--data", "digits", "--out", "e.safetensors"], 3, "no run or model in no/run"),
        (["embed", "EMPTY", "--data", "digits", "--out", "e.safetensors"], 3, "no model in"),
        (["index", "gone.safetensors", "--out", "e.index"], 3, "no file of embeddings gone.safetensors"),
        (["index", "PHOTOS/cats/00.png", "--out", "e.index"], 2, "not as '00.png'"),
        (["index", "EMBEDDED", "--out", "EMPTY"], 2, "--force"),
        (
            ["index", "EMBEDDED", "--out", "e.index", "--kind", "IVF0,Flat"],
            2,
            "FAISS cannot build an index 'IVF0,Flat'",
        ),
        (["index", "EMBEDDED", "--out", "RUN", "--force"], 2, "is no index"),
        (["search"], 2, "which index?"),
        (["search", "EMBEDDED"], 2, "for what?"),
        (["search", "EMBEDDED", "gone.jpg"], 3, "no image gone.jpg"),
        (["search", "EMBEDDED", "PHOTOS"], 3, "it is a folder"),
        (["search", "EMBEDDED", "RUN/recipe.toml"], 3, "as an image"),
        (["search", "EMBEDDED", "--id", "nobody"], 2, "no image with the id 'nobody'"),
        (["search", "EMBEDDED", "--id", "3", "--k", "0"], 2, "k must be 1 to 11"),
        (["search", "PHOTOS/cats/00.png", "EMBEDDED"], 2, "the index comes first"),
        (["search", "gone.index", "--id", "3"], 3, "no index gone.index"),
        (["search", "EMPTY", "--id", "3"], 3, "has no manifest.json"),
        (["search", "NESTED", "--id", "3"], 3, "too deeply nested"),
        (["search", "EMBEDDED", "--id", "3", "--threshold", "0.5"], 2, "go with --duplicates"),
        (["search", "EMBEDDED", "--duplicates", "--threshold", "2"], 2, "--threshold must lie"),
        (["search", "EMBEDDED", "--duplicates", "EMBEDDED", "--id", "3"], 2, "takes no queries"),
        (["search", "EMBEDDED", "--duplicates", "NARROW"], 3, "of 3"),
        (["search", "EMBEDDED", "--duplicates", "OTHER"], 3, "different encoders"),
    ],
)
def test_mistakes(
    arguments: list[str],
    exit_code: int,
    message: str,
    photo_folder: Path,
    encoder_run: Path,
    photo_embeddings: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    working_directory = tmp_path / "here"
    working_directory.mkdir()
    monkeypatch.chdir(working_directory)
    (tmp_path / "empty").mkdir()
    Embeddings(torch.eye(3), list("abc")).save(tmp_path / "narrow.safetensors")
    embeddings = Embeddings.load(photo_embeddings)
    metadata = {"encoder": {"sha256": "0" * 64}}
    Embeddings(embeddings.vectors, embeddings.ids, metadata=metadata).save(tmp_path / "other.safetensors")
    (tmp_path / "broken_run").mkdir()
    (tmp_path / "broken_run" / "recipe.toml").write_text("data = 3\n")
    (tmp_path / "nested").mkdir()
    (tmp_path / "nested" / "manifest.json").write_text(100_000 * "[")
    paths = {
        "NESTED": tmp_path / "nested",
        "BROKEN_RUN": tmp_path / "broken_run",
        "PHOTOS": photo_folder,
        "RUN": encoder_run,
        "EMBEDDED": photo_embeddings,
        "EMPTY": tmp_path / "empty",
        "NARROW": tmp_path / "narrow.safetensors",
        "OTHER": tmp_path / "other.safetensors",
    }
    filled_in = [
        re.sub("^[A-Z_]+", lambda match: str(paths.get(match[0], match[0])), argument) for argument in arguments
    ]
    assert message in run_command(filled_in, capsys, exit_code=exit_code)
    assert not list(working_directory.iterdir()), "a failed command leaves nothing"
