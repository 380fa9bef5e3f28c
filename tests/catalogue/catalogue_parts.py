"""What the tests of embedding, indexing and searching share."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from PIL import Image

from reptk.cli import main
from reptk.core import rng

needs_faiss = pytest.mark.skipif(find_spec("faiss") is None, reason="approximate indexes need FAISS")
needs_pyarrow = pytest.mark.skipif(find_spec("pyarrow") is None, reason="pyarrow is not installed")
TINY = {"encoder": "test_resnet", "size": 32, "workers": 2}


def picture(number: int, side: int = 40) -> Image.Image:
    """Something that no other number gives: coarse noise in colour."""
    coarse = torch.randint(0, 256, (4, 4, 3), generator=rng.generator("picture", number), dtype=torch.uint8)
    return Image.fromarray(coarse.numpy()).resize((side + 10, side), Image.Resampling.BICUBIC)


def said(arguments: list[object], capsys: pytest.CaptureFixture, code: int = 0) -> str:
    """What a command printed; mistakes are one message and no traceback."""
    assert main([str(word) for word in arguments]) == code
    printed = capsys.readouterr()
    assert (code == 0) == (not printed.err.startswith("error:")), printed.err
    return printed.out if code == 0 else printed.err


def spoil(path: Path, at: int = -5) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def manifest(path: Path, **change: object) -> None:
    words = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(words | change))
