"""A folder full of things to trip over, and what has to be true of the message."""

from pathlib import Path

from PIL import Image

TINY = """\
[data]
name = "generated"
train = 32
bank = 20
query = 10

[views]
name = "none"
size = 32

[encoder]
backbone = "test_resnet"

[method]
name = "contrastive"

[loss]
name = "simclr"

[optim]
lr = 0.05

[train]
epochs = 1
batch_size = 16
device = "cpu"
baselines = false

[eval.knn]
k = [1]
"""

LOSS = """
import torch
from reptk import LOSSES

@LOSSES.register("{name}")
class Loss(torch.nn.Module):
    def __init__(self):
        super().__init__()

    def forward(self, z, ids):
        {body}
"""

PLUGINS = {
    "nan_loss": "return z.sum() * float('nan')",
    "interrupted_loss": "raise KeyboardInterrupt",
    "failing_loss": "raise RuntimeError('out of luck')",
}

FOLDER = ("data.name=folder", "data.size=32")


def lay_out(place: Path) -> None:
    texts = {
        "tiny.toml": TINY,
        "no_loss.toml": TINY.replace('[loss]\nname = "simclr"\n', ""),
        "broken.toml": TINY.replace("[views]", "[views"),
        "wanting.toml": f'plugins = ["../elsewhere.py"]\n{TINY}',
        "empty.toml": "",
        "notes.txt": "not weights, no folder\n",
        "weights.pt": "not weights\n",
        "weights.safetensors": "not weights\n",
        "only_text/notes.txt": "no image",
        "taken/thesis.txt": "years of work",
        "useless.py": "x = 1\n",
        "crashing.py": "import no_such_dependency\n",
        "my-loss.py": LOSS.format(name="my_loss", body="return z.sum()"),
        **{f"{name}.py": LOSS.format(name=name, body=body) for name, body in PLUGINS.items()},
    }
    for name, text in texts.items():
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text(text)
    (place / "empty").mkdir()
    for folder in ("photos", "corrupt"):
        (place / folder).mkdir()
        for number in range(20):
            Image.new("RGB", (16, 16), (number, 0, 0)).save(place / folder / f"{number:02}.png")
    (place / "corrupt" / "07.png").write_bytes(b"\x89PNG\r\n\x1a\n and nothing more")


def everything(folder: Path) -> dict[str, bytes | None]:
    """All files below a folder with their content, all folders with None."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if "__pycache__" not in path.parts
    }


def error(captured: str) -> str:
    """The one message on standard error, without its start."""
    assert captured.startswith("error: "), captured
    assert captured.count("error: ") == 1
    assert "Traceback" not in captured
    return captured.removeprefix("error: ").rstrip("\n")
