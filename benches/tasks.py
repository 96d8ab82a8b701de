#!/usr/bin/env python3
"""An encoder with a classifier, given other outputs: the same weights, other tasks.

    python benches/tasks.py MODEL TASK OUT

TASK is one of those below. Heads that the encoder was not trained with are drawn at random, always the same. MODEL is an
export of BERT's architecture: hidden states come out of its last LayerNormalization, the pooled state out of its last Tanh.
"""

import pathlib
import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class Outputs:
    def __init__(self, model):
        self.graph = model.graph
        self.random = np.random.default_rng(7)
        self.width = next(t.dims[0] for t in self.graph.initializer if t.name.endswith("LayerNorm.bias"))

    def last(self, op_type):
        return next(n.output[0] for n in reversed(self.graph.node) if n.op_type == op_type)

    def constant(self, array):
        name = f"task_constant_{len(self.graph.initializer)}"
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def op(self, op_type, *inputs, **attributes):
        name = f"task_{op_type}_{len(self.graph.node)}"
        self.graph.node.append(helper.make_node(op_type, inputs, [name], name=name, **attributes))
        return name

    def head(self, states, classes):
        """Scores about three apart, of states whose elements are about one."""
        weight = 3 * self.random.normal(size=(self.width, classes)) / np.sqrt(self.width)
        return self.op("MatMul", states, self.constant(weight.astype(np.float32)))

    def end(self, *outputs):
        """What is given: (name, value, axes)."""
        del self.graph.output[:]
        for name, value, axes in outputs:
            self.graph.node.append(helper.make_node("Identity", [value], [name], name=name))
            self.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, axes))


def regression(o):
    logits = o.graph.output[0].name
    o.end(("score", o.op("MatMul", logits, o.constant(np.float32([[-1], [1]]))), ["batch", 1]))


def classes(o):
    o.end(("class_logits", o.head(o.last("Tanh"), 4), ["batch", 4]))


def tokens(o):
    o.end(("token_logits", o.head(o.last("LayerNormalization"), 9), ["batch", "sequence", 9]))


def spans(o):
    both = o.head(o.last("LayerNormalization"), 2)
    one = lambda i: o.op("Gather", both, o.constant(np.int64(i)), axis=2)
    o.end(("start_logits", one(0), ["batch", "sequence"]), ("end_logits", one(1), ["batch", "sequence"]))


def states(o):
    o.end(("last_hidden_state", o.last("LayerNormalization"), ["batch", "sequence", o.width]))


def embedding(o):
    axis = lambda i: o.constant(np.int64([i]))
    real = o.op("Unsqueeze", o.op("Cast", "attention_mask", to=TensorProto.FLOAT), axis(2))
    total = o.op("ReduceSum", o.op("Mul", o.last("LayerNormalization"), real), axis(1), keepdims=0)
    mean = o.op("Div", total, o.op("ReduceSum", real, axis(1), keepdims=0))
    o.end(("sentence_embedding", o.op("LpNormalization", mean, axis=1), ["batch", o.width]))


TASKS = {t.__name__: t for t in (regression, classes, tokens, spans, states, embedding)}


def make(path, task, out):
    model = onnx.load(path)
    TASKS[task](Outputs(model))
    onnx.checker.check_model(model)
    onnx.save(model, out)


if __name__ == "__main__":
    if len(sys.argv) != 4 or sys.argv[2] not in TASKS:
        raise SystemExit(__doc__)
    make(pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3])
