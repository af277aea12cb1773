"""A model in tinygrad, which writes a kernel for every step, and compiles all of them at the first runs."""

from common import main
from tinygrad import Tensor, TinyJit
from tinygrad.nn.onnx import OnnxRunner


def load(model, first, threads):
    """See `main`."""
    runner = OnnxRunner(str(model))
    jitted = TinyJit(lambda image: runner({"image": image})["logits"].realize())
    return lambda batch: jitted(Tensor(batch).realize()).numpy()


main("tinygrad", load)
