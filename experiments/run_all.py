"""Every document's record and figure again, one after the other, then the tables and the gallery.

Command: `python experiments/run_all.py [--data-dir DIR] [--torch-python PATH]`, 45 minutes on two
cores. DIR holds MNIST, Fashion-MNIST and CIFAR-10 as TensorFlow Datasets prepares them (by default
../shared/tfds beside the repository), PATH is an interpreter that has PyTorch; the files of the
Kaggle tasks are read from ../shared/data. It continues after a document that fails, and reports it
at the end. `--smoke` runs each document on little data and writes nothing. Experiments that need an
idle machine or other compilers have separate commands, which README.md lists.
"""

import subprocess
import sys
import time
from pathlib import Path

import document
import gallery

DATA = {
    "losses_of_a_classifier",
    "prediction_minus_truth",
    "scores_and_margin",
    "temperature",
    "divergences",
    "minibatches",
    "image_classification",
    "main_job",
}
TORCH = {"benchmark", "features", "stability"}
TIMED = (
    "benchmark",
    "data_parallel",
    "main_job",
    "language_model_cost",
    "features",
)
LONGER = {"benchmark": ["--minutes", "15"]}
TO_COPY = ("train_minibatch", "train_large_head", "finetune_head", "distill", "serve")
LANGUAGE_MODELS = ("language_model_flax", "language_model_equinox")


def main() -> None:
    """Run all, print each one's minutes, then write the tables and the gallery."""
    options = document.arguments(__doc__, torch=True)
    failed = []
    small = ["--smoke"] if options.smoke else []
    data = ["--data-dir", options.data_dir] if options.data_dir else []
    torch = ["--torch-python", options.torch_python] if options.torch_python else []
    for name in (*TIMED, *gallery.DOCUMENTS, *LANGUAGE_MODELS):
        more = small + LONGER.get(name, [])
        more += (data if name in DATA else []) + (torch if name in TORCH else [])
        if not run(name, more):
            failed.append(name)
    for name in (*TO_COPY, *(() if options.smoke else ("tables", "gallery"))):
        if not run(name, []):
            failed.append(name)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def run(name: str, more: list[str | Path]) -> bool:
    """Run one document in a separate process; return whether it succeeded."""
    print(f"\n=== {name}", flush=True)
    start = time.perf_counter()
    script = Path(__file__).with_name(f"{name}.py")
    done = subprocess.run([sys.executable, script, *map(str, more)], check=False)
    print(f"=== {name}: {(time.perf_counter() - start) / 60:.1f} minutes", flush=True)
    return done.returncode == 0


if __name__ == "__main__":
    main()
