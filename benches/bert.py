#!/usr/bin/env python3
"""bert.py FOLDER [--layers 12 --hidden 768 --heads 12 --inner 3072 --vocab 30522 --tokens 10000 --seed 0]

Writes a BERT classifier with random weights to FOLDER/model.onnx, and random samples of 8 to 120 tokens, so many
tokens in all, to FOLDER/calibration.npz. Times do not depend on what weights are; accuracies would.
"""
import argparse
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class Builder:
    def __init__(self, seed):
        self.random = np.random.default_rng(seed)
        self.nodes, self.constants = [], []

    def constant(self, name, array):
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def weight(self, name, *shape):
        return self.constant(name, (0.02 * self.random.standard_normal(shape, np.float32)).astype(np.float32))

    def op(self, op_type, name, *inputs, **attributes):
        self.nodes.append(helper.make_node(op_type, list(inputs), [name], name=name, **attributes))
        return name

    def linear(self, name, x, rows, columns):
        product = self.op("MatMul", f"{name}/MatMul", x, self.weight(f"{name}.weight", rows, columns))
        return self.op("Add", f"{name}/Add", self.weight(f"{name}.bias", columns), product)

    def norm(self, name, x, width):
        scale = self.constant(f"{name}.weight", np.ones(width, np.float32))
        shift = self.constant(f"{name}.bias", np.zeros(width, np.float32))
        return self.op("LayerNormalization", name, x, scale, shift, axis=-1, epsilon=1e-12)

    def gelu(self, name, x):
        erf = self.op("Erf", f"{name}/Erf", self.op("Div", f"{name}/Div", x, "sqrt_two"))
        gate = self.op("Add", f"{name}/Add", erf, "one")
        return self.op("Mul", f"{name}/Mul_1", self.op("Mul", f"{name}/Mul", x, gate), "half")


def bert(args):
    b = Builder(args.seed)
    hidden, size = args.hidden, args.hidden // args.heads
    for name, value in (("sqrt_two", 2**0.5), ("one", 1), ("half", 0.5), ("root", size**0.5), ("far", -10000)):
        b.constant(name, np.float32(value))
    b.constant("split", np.array([0, 0, args.heads, size], np.int64))
    b.constant("joined", np.array([0, 0, hidden], np.int64))

    words = b.op("Gather", "words", b.weight("embeddings.words", args.vocab, hidden), "input_ids")
    length = b.op("Gather", "length", b.op("Shape", "shape", "input_ids"), b.constant("first", np.array([1])))
    places = b.op("Slice", "places", b.weight("embeddings.places", 512, hidden), b.constant("zero", np.array([0])),
                  length, b.constant("rows", np.array([0])))
    x = b.norm("embeddings.norm", b.op("Add", "embeddings", words, places), hidden)
    real = b.op("Unsqueeze", "real", b.op("Cast", "mask", "attention_mask", to=TensorProto.FLOAT),
                b.constant("middle", np.array([1, 2])))
    mask = b.op("Mul", "bias", b.op("Sub", "padding", "one", real), "far")

    def heads(name, x, perm):
        split = b.op("Reshape", f"{name}/Reshape", b.linear(name, x, hidden, hidden), "split")
        return b.op("Transpose", f"{name}/Transpose", split, perm=perm)

    for i in range(args.layers):
        layer = f"layer.{i}"
        query, key, value = (heads(f"{layer}.{n}", x, perm) for n, perm in
                             (("query", [0, 2, 1, 3]), ("key", [0, 2, 3, 1]), ("value", [0, 2, 1, 3])))
        scores = b.op("Div", f"{layer}.scaled", b.op("MatMul", f"{layer}.scores", query, key), "root")
        shares = b.op("Softmax", f"{layer}.softmax", b.op("Add", f"{layer}.masked", scores, mask), axis=-1)
        context = b.op("Transpose", f"{layer}.context", b.op("MatMul", f"{layer}.mix", shares, value), perm=[0, 2, 1, 3])
        output = b.linear(f"{layer}.output", b.op("Reshape", f"{layer}.joined", context, "joined"), hidden, hidden)
        x = b.norm(f"{layer}.attention.norm", b.op("Add", f"{layer}.attention", output, x), hidden)
        inner = b.gelu(f"{layer}.gelu", b.linear(f"{layer}.inner", x, hidden, args.inner))
        x = b.norm(f"{layer}.norm", b.op("Add", f"{layer}.ffn", b.linear(f"{layer}.outer", inner, args.inner, hidden), x),
                   hidden)

    b.constant("cls", np.int64(0))
    pooled = b.op("Tanh", "pooled", b.linear("pooler", b.op("Gather", "head", x, "cls", axis=1), hidden, hidden))
    b.linear("logits", pooled, hidden, 2)
    b.nodes[-1].output[0] = "logits"
    axes = ["batch", "sequence"]
    inputs = [helper.make_tensor_value_info(n, TensorProto.INT64, axes) for n in ("input_ids", "attention_mask")]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])]
    graph = helper.make_graph(b.nodes, "bert", inputs, outputs, b.constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def samples(args):
    random = np.random.default_rng(args.seed + 1)
    lengths = []
    while sum(lengths) < args.tokens:
        lengths.append(min(int(random.integers(8, 121)), args.tokens - sum(lengths)))
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    return {"input_ids": random.integers(0, args.vocab, mask.shape) * mask, "attention_mask": mask}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    for name, default in (("layers", 12), ("hidden", 768), ("heads", 12), ("inner", 3072), ("vocab", 30522),
                          ("tokens", 10000), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    onnx.save(bert(args), args.folder / "model.onnx")
    np.savez(args.folder / "calibration.npz", **samples(args))


if __name__ == "__main__":
    main()
