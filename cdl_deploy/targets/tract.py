"""tract: reads the file as it is, once it is told the shape of the input (set_input_fact)."""

from cdl_deploy.targets.target import Target

UNTRIED = "it was not compared there: export without"

TARGET = Target(
    "tract",
    input="tensor",
    refused={"int8": UNTRIED, "int8-dynamic": UNTRIED},
    script="run_tract.py",
    packages=("tract",),
    distribution="tract",
    install="pip install tract",
    threads=False,
    note='tell it the shape: set_input_fact(0, "1,3,224,224,f32"); it renames outputs, the first is logits',
)
