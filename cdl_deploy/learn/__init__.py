"""An exported model learns where it runs: images in, the same model with a new head out. NumPy and onnxruntime only.

protobuf.py     fields of a message, in bytes and in a file
onnx_edit.py    a model file with some constants, shapes and metadata replaced, all other bytes as they were
opened.py       a model, its statistics and its open file, all three of one moment
names.py        names of new classes, and those that mean a known one
addition.py     images → sums
head.py         sums → the constants of the file: head, distance, labels, task table
state.py        what a learned file says about itself: classes, tasks, threshold, and how it was before
written.py      model, statistics and description, replaced so that they always fit each other
learner.py      `Learner`, which Python programs use
merging.py      models that learned different things from one base become one
review.py       what the new classes do to the old ones, before anyone ships them
"""
