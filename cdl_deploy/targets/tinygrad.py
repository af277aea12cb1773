"""tinygrad: reads the file, once there is no string in it."""

from cdl_deploy.targets.portable import BY_CONVERTERS
from cdl_deploy.targets.target import Target

TARGET = Target(
    "tinygrad",
    input="tensor",
    labels="none",
    batch=1,
    refused=BY_CONVERTERS,
    script="run_tinygrad.py",
    packages=("tinygrad",),
    distribution="tinygrad",
    install="pip install tinygrad numpy",
    threads=False,
    note="on processors it needs clang on the path, and compiles for a minute at the first runs; TinyJit keeps that",
)
