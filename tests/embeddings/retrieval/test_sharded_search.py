"""Several ranks find what one process finds, in every kind of index."""

import contextlib
import os
from pathlib import Path

import pytest
import torch
from rank_processes import run_on_ranks

import reptk
from embedding_inputs import clustered, needs_faiss, run_command
from reptk.cli import main
from reptk.core import distributed
from reptk.embeddings import Index
from reptk.embeddings.retrieval.sharded_search import search_over_ranks

__all__ = ["clustered"]

pytestmark = [
    pytest.mark.slow,
    needs_faiss,
    pytest.mark.filterwarnings("ignore:.*centroids badly"),
]

KINDS = {"Flat": None, "IVF16,PQ4x4": True, "PCA8,IVF16_HNSW8,Flat": True, "IVF16,Flat": None, "HNSW8": None}


def search_on_rank(rank: int, folder: str) -> None:
    results = {}
    for kind in KINDS:
        index = Index.open(Path(folder, kind), trust=True)
        queries = index.embeddings.vectors[5:12]
        for name, count, exclude in (("all", 7, torch.arange(5, 12)), ("one", 1, None)):
            found = search_over_ranks(index, queries[:count], 9, exclude)
            results[f"{kind} {name}"] = torch.stack([found[0].double(), found[1].double()])
        # The query's lists hold too few rows, so others are searched as well.
        results[f"{kind} many"] = search_over_ranks(index, queries, 400)[1]
    torch.save(results, Path(folder, f"{distributed.world_size()}_{rank}.pt"))


def command_on_rank(rank: int, arguments: list[str], folder: str) -> None:
    with (
        Path(folder, f"output_{rank}.txt").open("w") as output,
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(output),
    ):
        code = main(arguments)
    assert os.environ["WORLD_SIZE"] == "2"
    Path(folder, f"code_{rank}.txt").write_text(str(code))


def test_ranks_find_what_one_process_finds(clustered: "reptk.Embeddings", tmp_path: Path) -> None:
    for kind, on_disk in KINDS.items():
        reptk.index(clustered, out=tmp_path / kind, kind=kind, on_disk=on_disk)
    search_on_rank(0, str(tmp_path))
    expected = torch.load(tmp_path / "1_0.pt", weights_only=True)
    run_on_ranks(search_on_rank, 3, str(tmp_path))
    for rank in range(3):
        results = torch.load(tmp_path / f"3_{rank}.pt", weights_only=True)
        for name, result in results.items():
            assert torch.equal(result, expected[name]), (name, rank)


def test_the_command_on_ranks(clustered: "reptk.Embeddings", tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "e.safetensors"
    clustered.save(file)
    arguments = ["search", str(file), "--id", "3", "--k", "4", "--no-html"]
    run_on_ranks(command_on_rank, 2, arguments, str(tmp_path))
    assert (tmp_path / "output_0.txt").read_text() == run_command(arguments, capsys)
    assert (tmp_path / "output_1.txt").read_text() == "", "one rank prints"
    run_on_ranks(command_on_rank, 2, ["search", str(file), "--duplicates", "--no-html"], str(tmp_path))
    assert "torchrun or srun has started 2" in (tmp_path / "output_0.txt").read_text()
    assert (tmp_path / "code_0.txt").read_text() == "2"
