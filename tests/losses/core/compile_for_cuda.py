"""Compile the Triton kernels for a GPU that need not be there, and print what each needs: one line of JSON a kernel.

python tests/losses/core/compile_for_cuda.py bfloat16 128
"""

import json
import sys

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from reptk.losses.core import triton_backend, triton_kernels

KERNELS = {
    "half_sums": triton_kernels.half_sums_kernel,
    "sums": triton_kernels.sums_kernel,
    "gradient": triton_kernels.gradient_kernel,
}
ROW_POINTERS = ("z_ptr", "x_ptr", "y_ptr")
INTEGER_POINTERS = ("group_ptr", "x_group_ptr", "y_group_ptr", "order_ptr", "start_ptr", "stop_ptr")
INTEGERS = ("n", "m", "d")
TRITON_TYPES = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}


def argument_type(argument: str, dtype: torch.dtype) -> str:
    """Return Triton's name for the type of an argument that is no constant."""
    if argument in ROW_POINTERS:
        return TRITON_TYPES[dtype]
    if argument in INTEGER_POINTERS:
        return "*i64"
    if argument in INTEGERS:
        return "i32"
    return "*fp32"


def compile_kernel(name: str, dtype: torch.dtype, d: int, **constants: object) -> dict[str, object]:
    z, kernel = torch.empty(1, d, dtype=dtype), KERNELS[name]
    size = triton_backend.launch_size(name, z, 1 << 20)
    constants |= {"ROWS": size.rows, "WIDTH": triton_backend.padded_width(d), "PRECISION": triton_backend.precision(z)}
    if name != "half_sums":
        constants["KEYS"] = size.keys
    signature = {}
    for argument in kernel.arg_names:
        signature[argument] = "constexpr" if argument in constants else argument_type(argument, dtype)
    source = ASTSource(kernel, signature, constexprs=constants)
    options = {"num_warps": size.warps, "num_stages": size.stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    tensor_cores = any(word in compiled.asm["ptx"] for word in ("wgmma.mma_async", "mma.sync"))
    return {"kernel": kernel.__name__, "shared": compiled.metadata.shared, "tensor_cores": tensor_cores}


def main() -> None:
    dtype, width = getattr(torch, sys.argv[1]), int(sys.argv[2])
    for candidates in ("others", "negatives"):
        print(json.dumps(compile_kernel("half_sums", dtype, width, CANDIDATES=candidates)))
    for candidates in ("positives", "negatives", "others"):
        sums = {
            "CANDIDATES": candidates,
            "SELF": True,
            "WITH_EXPECTATION": candidates == "others",
            "NEEDS_MAX_SHIFT": candidates != "negatives",
        }
        print(json.dumps(compile_kernel("sums", dtype, width, **sums)))
        gradient = {
            "CANDIDATES": candidates,
            "SELF": candidates != "negatives",
            "KEYS_ARE_ANCHORS": candidates != "negatives",
            "NEEDS_MAX_SHIFT": candidates != "others",
        }
        print(json.dumps(compile_kernel("gradient", dtype, width, **gradient)))


if __name__ == "__main__":
    main()
