"""A folder of faulty inputs, what is in a folder, and the message of an error."""

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

LOSS_BODIES = {
    "nan_loss": "return z.sum() * float('nan')",
    "interrupted_loss": "raise KeyboardInterrupt",
    "failing_loss": "raise RuntimeError('out of luck')",
}
"""What `forward` of the losses in the plugins of these names does."""

FOLDER = ("data.name=folder", "data.size=32")
"""Overrides for images of a folder."""

IMAGE_COUNT = 20


def write_faulty_inputs(folder: Path) -> None:
    """Write recipes, weights, plugins and images, most of which are wrong in some way."""
    texts = {
        "tiny.toml": TINY,
        "no_loss.toml": TINY.replace('[loss]\nname = "simclr"\n', ""),
        "broken.toml": TINY.replace("[views]", "[views"),
        "plugin_elsewhere.toml": f'plugins = ["../elsewhere.py"]\n{TINY}',
        "empty.toml": "",
        "notes.txt": "not weights, no folder\n",
        "weights.pt": "not weights\n",
        "weights.safetensors": "not weights\n",
        "only_text/notes.txt": "no image",
        "occupied/thesis.txt": "years of work",
        "useless.py": "import reptk.losses\n",  # registers the built-in losses, which are not the plugin's
        "crashing.py": "import no_such_dependency\n",
        "my-loss.py": LOSS.format(name="my_loss", body="return z.sum()"),
    }
    for name, body in LOSS_BODIES.items():
        texts[f"{name}.py"] = LOSS.format(name=name, body=body)
    for name, text in texts.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    (folder / "empty").mkdir()
    (folder / "circle").symlink_to("circle")
    for images in ("photos", "corrupt"):
        (folder / images).mkdir()
        for number in range(IMAGE_COUNT):
            Image.new("RGB", (16, 16), (number, 0, 0)).save(folder / images / f"{number:02}.png")
    (folder / "corrupt" / "07.png").write_bytes(b"\x89PNG\r\n\x1a\n and nothing more")


def folder_content(folder: Path) -> dict[str, bytes | None]:
    """All files below a folder with their content, all folders with None."""
    content = {}
    for path in sorted(folder.rglob("*")):
        if "__pycache__" not in path.parts:
            content[str(path.relative_to(folder))] = path.read_bytes() if path.is_file() else None
    return content


def error_message(stderr: str) -> str:
    """The only message on standard error, without its prefix."""
    assert stderr.startswith("error: "), stderr
    assert stderr.count("error: ") == 1
    assert "Traceback" not in stderr
    return stderr.removeprefix("error: ").rstrip("\n")
