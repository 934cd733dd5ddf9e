"""Run by MXNet's own environment: writes a trained network in each of its formats, and what it gives by hand.

Usage: mxnet_models.py NETWORK.npz DIRECTORY [NETWORK.npz DIRECTORY ..]
"""

import json
import sys
from pathlib import Path

import mxnet as mx
import numpy as np


def write_module(folder, network):
    """A Module's checkpoint, with a label that only training reads."""
    head = mx.sym.FullyConnected(mx.sym.Variable("data"), num_hidden=len(network["w1"]), name="fc1")
    head = mx.sym.FullyConnected(mx.sym.Activation(head, act_type="relu"), num_hidden=len(network["w2"]), name="fc2")
    symbol = mx.sym.SoftmaxOutput(head, name="softmax")
    names = {"w1": "fc1_weight", "b1": "fc1_bias", "w2": "fc2_weight", "b2": "fc2_bias"}
    weights = {name: mx.nd.array(network[key]) for key, name in names.items()}
    folder.mkdir()
    mx.model.save_checkpoint(str(folder / "net"), 3, symbol, weights, {})
    symbol, weights, states = mx.model.load_checkpoint(str(folder / "net"), 3)
    module = mx.mod.Module(symbol, label_names=None)
    module.bind([("data", network["x"].shape)], for_training=False)
    module.set_params(weights, states, allow_missing=True)
    module.forward(mx.io.DataBatch([mx.nd.array(network["x"])]), is_train=False)
    return module.get_outputs()[0].asnumpy()


def write_gluon(folder, network):
    net = mx.gluon.nn.HybridSequential()
    net.add(mx.gluon.nn.Dense(len(network["w1"]), activation="relu"), mx.gluon.nn.Dense(len(network["w2"])))
    net.add(mx.gluon.nn.HybridLambda("softmax"))
    net.initialize()
    net.hybridize()
    net(mx.nd.array(network["x"]))
    for block, weights, bias in ((net[0], "w1", "b1"), (net[1], "w2", "b2")):
        block.weight.set_data(network[weights])
        block.bias.set_data(network[bias])
    net(mx.nd.array(network["x"]))
    folder.mkdir()
    net.export(str(folder / "net"), epoch=0)
    files = str(folder / "net-symbol.json"), ["data"], str(folder / "net-0000.params")
    return mx.gluon.SymbolBlock.imports(*files)(mx.nd.array(network["x"])).asnumpy()


def write_numpy(folder, network):
    """An export of a block of mxnet.np, whose files ask for the shapes' other meaning."""
    mx.npx.set_np()

    class Scores(mx.gluon.HybridBlock):
        def __init__(self):
            super().__init__()
            self.dense = mx.gluon.nn.Dense(3, in_units=network["x"].shape[1])

        def hybrid_forward(self, functions, x):
            return functions.np.tanh(self.dense(x))

    net = Scores()
    net.initialize(mx.init.Normal(0.01))
    net.hybridize()
    x = mx.np.array(network["x"])
    found = net(x).asnumpy()
    folder.mkdir()
    net.export(str(folder / "net"), epoch=0)
    mx.npx.reset_np()
    return found


def write_newer(folder, symbol):
    """The module's symbol, as a later MXNet would have written it."""
    folder.mkdir()
    values = json.loads(symbol.read_text())
    values["attrs"]["mxnet_version"] = ["int", 20000]
    (folder / "net-symbol.json").write_text(json.dumps(values))
    (folder / "net-0003.params").write_bytes(symbol.with_name("net-0003.params").read_bytes())


def write_all(folder, network):
    folder.mkdir(parents=True)
    found = {"module": write_module(folder / "module", network), "gluon": write_gluon(folder / "gluon", network)}
    found["numpy"] = write_numpy(folder / "numpy", network)
    write_newer(folder / "newer", folder / "module" / "net-symbol.json")
    np.savez(folder / "expected.npz", **found)


for file, place in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
    write_all(Path(place), dict(np.load(file)))
