"""Rockchip: rknn-toolkit2 makes a .rknn; its simulator is the proof, and no device was tried."""

from cdl_deploy.targets.portable import BY_CONVERTERS
from cdl_deploy.targets.target import Target

TARGET = Target(
    "rknn",
    opset=18,
    opsets=(17, 19),
    input="tensor",
    inputs=("tensor",),
    labels="none",
    batch=1,
    refused={**BY_CONVERTERS, "fp16": "rknn computes in fp16 anyway: export without"},
    tolerance=1e-2,
    agreement=0.95,
    script="run_rknn.py",
    packages=("rknn",),
    distribution="rknn-toolkit2",
    oldest=(2,),
    install="pip install rknn-toolkit2 'setuptools<81'",
    converted=(".rknn",),
    threads=False,
    note="for rk3588, or what CDL_RKNN_PLATFORM says; computed in fp16; times are the simulator's and say nothing",
)
