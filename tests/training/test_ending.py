"""The DDP wrapper is gone before the process group is: freed after it, its destructor can deadlock with gloo's threads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys, weakref
from sparsepo import SparsePOConfig, SparsePOTrainer
from tests.support import preference_rows, tiny_model, tiny_tokenizer

args = SparsePOConfig(
    sys.argv[1], use_cpu=True, per_device_train_batch_size=2, max_steps=1, report_to="none", save_strategy="no"
)
trainer = SparsePOTrainer(
    tiny_model(), args=args, train_dataset=preference_rows(8), processing_class=tiny_tokenizer()
)
trainer.train()
wrapper = weakref.ref(trainer.model_wrapped)
assert type(wrapper()).__name__ == "DistributedDataParallel"
trainer.end()
assert wrapper() is None
print("ended well", flush=True)
"""


def test_wrapper_is_freed_before_the_process_group(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    root = Path(__file__).resolve().parents[2]
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node",
            "2",
            str(script),
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)},
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("ended well") == 2
