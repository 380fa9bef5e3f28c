"""`reptk export RUN --to onnx --out FILE`: the encoder of a run in another format."""

import argparse

from reptk.core.errors import UsageError

ENCODER_FORMATS = ("onnx", "pt2", "timm", "safetensors")
"""Those of `reptk.export.FORMATS`, whose import takes seconds."""


def export_encoder(args: argparse.Namespace) -> int:
    """Write the encoder, and print what was written and how it compares. Returns the exit code."""
    if args.out is None:
        raise UsageError(f"--to {args.to} writes a file or folder, which --out names")

    from reptk.export import export_model  # imports torch: only once the arguments are known to be right

    export_model(args.source, args.to, args.out, data=args.data, num_images=args.images, force=args.force, report=print)
    return 0
