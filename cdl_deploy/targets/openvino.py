"""OpenVINO: reads the file as it is, strings, uint8 images of any size and QDQ included."""

from cdl_deploy.targets.target import Target

TARGET = Target(
    "openvino",
    refused={"int8-dynamic": "its dynamic scales are of a batch, and were not compared: use int8"},
    script="run_openvino.py",
    packages=("openvino",),
    distribution="openvino",
    oldest=(2024,),
    install="pip install openvino",
    note="its default precision on newer processors is bf16 (logits 0.02 off): INFERENCE_PRECISION_HINT=f32",
)
