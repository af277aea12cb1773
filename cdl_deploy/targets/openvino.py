"""OpenVINO: reads the file as it is, strings, uint8 images of any size and QDQ included. NNCF makes int8 for it."""

from cdl_deploy.targets.target import Target

NNCF = Target(
    # Runs in OpenVINO's own choice of precision: beside int8 bf16 loses nothing more, and saves 7 to 14 %
    # (docs/quantisation.md).
    "openvino",
    script="run_openvino_nncf.py",
    packages=("nncf", "openvino"),
    distribution="nncf",
    oldest=(3,),
    install="pip install openvino nncf",
    converted=(".int8-nncf.xml", ".int8-nncf.bin"),
)

TARGET = Target(
    "openvino",
    refused={"int8-dynamic": "its dynamic scales are of a batch, and were not compared: use int8"},
    script="run_openvino.py",
    packages=("openvino",),
    distribution="openvino",
    oldest=(2024,),
    install="pip install openvino",
    quantiser=NNCF,
    note="its default precision on newer processors is bf16 (logits 0.02 off): INFERENCE_PRECISION_HINT=f32; int8 is "
    "made by NNCF (student.int8-nncf.xml) and runs in the default precision",
)
