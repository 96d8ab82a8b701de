"""``python -m onnx_kprune`` is ``onnx-kprune``."""
import subprocess
import sys

from . import program

if __name__ == "__main__":
    raise SystemExit(subprocess.run([program(), *sys.argv[1:]]).returncode)
