"""What the folder of a model holds, as one state dict."""

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor


def model_state(model: Path) -> dict[str, Tensor]:
    """Return the weights of a model's folder under the names of the encoder's state dict."""
    state = {f"backbone.{name}": value for name, value in load_file(model / "model.safetensors").items()}
    head = model / "head.safetensors"
    if head.is_file():
        state |= {f"head.{name}": value for name, value in load_file(head).items()}
    return state
