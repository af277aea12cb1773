"""onnxruntime: what export writes for anyway. 1.15 loads opset 18, 1.17 loads 20."""

from cdl_deploy.targets.target import Target

TARGET = Target("onnxruntime", install="pip install onnxruntime", note="1.15 and later for --opset 18, 1.17 for 20")
