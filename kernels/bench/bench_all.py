"""Measure every operation on the GPU at hand, and print the table that kernels/README.md holds."""

import time
import traceback

import bench_attention
import bench_kv_pack
import bench_rms_norm
import bench_rotary
import bench_sample
import bench_silu_mul
import torch
from measure import Row, measure_ceilings, report

if __name__ == "__main__":
    ceilings = measure_ceilings()
    found: list[Row] = []
    for module in (
        bench_rms_norm,
        bench_rotary,
        bench_silu_mul,
        bench_kv_pack,
        bench_attention,
        bench_sample,
    ):
        begin = time.perf_counter()
        try:
            found += module.rows()
        except Exception:  # one operation's failure must not cost the others' figures
            traceback.print_exc()
        print(f"{module.__name__}: {time.perf_counter() - begin:.1f} s", flush=True)
        torch.cuda.empty_cache()
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, copy {ceilings.copy_gbps:.0f} GB/s,",
        end=" ",
    )
    print(f"matmul {ceilings.matmul_tflops:.0f} TFLOP/s")
    report(found, ceilings)
