"""Compile the Triton kernels for a GPU that need not be there, and print what each takes: one line of JSON a kernel.

python tests/compile_for_cuda.py bfloat16 128
"""

import json
import sys

import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from reptk.losses.core import triton_kernels

TYPES = {
    "*i64": ("group", "x_group_ptr", "y_group_ptr", "order", "start", "stop"),
    "*fp32": ("slope", "total", "top_ptr", "total_ptr", "moment_ptr", "g_ptr", "lse_ptr", "g_columns", "lse_columns", "gradient"),  # noqa: E501
    "i32": ("n", "m", "d"),
}  # fmt: skip


def compiled(name: str, dtype: torch.dtype, d: int, **constants: object) -> dict[str, object]:
    z, kernel = torch.empty(1, d, dtype=dtype), getattr(triton_kernels, f"_{name}_kernel")
    launch = triton_kernels._launch(name, z, 1 << 20)
    blocks = {"BLOCK": launch.rows} if name == "half" else {"ROWS": launch.rows, "COLUMNS": launch.columns}
    constants |= {**blocks, "WIDTH": triton_kernels._width(d), "PRECISION": triton_kernels._precision(z)}
    signature = dict.fromkeys(constants, "constexpr")
    signature |= {name: kind for kind, names in TYPES.items() for name in names if name in kernel.arg_names}
    signature |= {
        name: {"bfloat16": "*bf16", "float16": "*fp16", "float32": "*fp32"}[str(dtype).removeprefix("torch.")]
        for name in ("z", "x_ptr", "y_ptr")
        if name in kernel.arg_names
    }
    source = ASTSource(kernel, {name: signature[name] for name in kernel.arg_names}, constexprs=constants)
    options = {"num_warps": launch.warps, "num_stages": launch.stages}
    made = triton_kernels.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    tensor_cores = any(word in made.asm["ptx"] for word in ("wgmma.mma_async", "mma.sync"))
    return {"kernel": kernel.__name__, "shared": made.metadata.shared, "tensor_cores": tensor_cores}


if __name__ == "__main__":
    rows, width = getattr(torch, sys.argv[1]), int(sys.argv[2])
    for negatives in (False, True):
        print(json.dumps(compiled("half", rows, width, NEGATIVES=negatives)))
    for over in (0, 1, 2):
        some = {"OVER": over, "SELF": True, "LEARNED": over == 2, "TAME": over == 1}
        print(json.dumps(compiled("sums", rows, width, **some)))
        some = {"OVER": over, "SELF": over != 1, "ANCHORS": over != 1, "TAME": over == 2}
        print(json.dumps(compiled("gradient", rows, width, **some)))
