"""Run by TensorFlow's own environment: writes a trained network in each of its formats, and what it gives by hand.

Usage: tensorflow_models.py NETWORK.npz DIRECTORY [NETWORK.npz DIRECTORY ..]
"""

import os
import sys
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
import numpy as np
import tensorflow as tf

v1 = tf.compat.v1


def scores(x, network):
    hidden = tf.nn.relu(tf.matmul(x, network["w1"], transpose_b=True) + network["b1"])
    return tf.nn.softmax(tf.matmul(hidden, network["w2"].T) + network["b2"], name="probabilities")


def write_frozen(folder, network):
    """A graph of constants; run by the pattern of frozen graphs: placeholders in, what nothing consumes out."""
    graph = tf.Graph()
    with graph.as_default():
        scores(v1.placeholder(tf.float32, [None, network["w1"].shape[1]], "data"), network)
    folder.mkdir()
    (folder / "model.pb").write_bytes(graph.as_graph_def().SerializeToString())
    definition = v1.GraphDef()
    definition.ParseFromString((folder / "model.pb").read_bytes())
    with v1.Session(graph=tf.Graph()) as session:
        tf.import_graph_def(definition, name="")
        return session.run("probabilities:0", {"data:0": network["x"]})


def write_saved(folder, network):
    model = tf.Module()
    model.w1 = tf.Variable(network["w1"])  # a variable, so that there is something to restore
    spec = tf.TensorSpec([None, network["w1"].shape[1]], tf.float32, "data")
    serve = tf.function(lambda data: {"probabilities": scores(data, {**network, "w1": model.w1})})
    tf.saved_model.save(model, str(folder), signatures=serve.get_concrete_function(spec))
    loaded = tf.saved_model.load(str(folder)).signatures["serving_default"]
    return loaded(data=tf.constant(network["x"]))["probabilities"].numpy()


def write_checkpoint(folder, network):
    graph = tf.Graph()
    with graph.as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None, network["w1"].shape[1]], "data")
        weights = v1.get_variable("w1", initializer=network["w1"].T)
        tf.matmul(x, weights, name="hidden")
        session.run(v1.global_variables_initializer())
        v1.train.Saver().save(session, str(folder / "model.ckpt"))
        unfrozen = folder.with_name("unfrozen")
        unfrozen.mkdir()
        (unfrozen / "model.pb").write_bytes(graph.as_graph_def().SerializeToString())


def write_others(folder):
    """Graphs of two outputs of one operation, of text, and of an input without a rank."""
    for name in ("split", "text", "rankless"):
        graph = tf.Graph()
        with graph.as_default():
            if name == "split":
                tf.split(v1.placeholder(tf.float32, [None, 4], "x"), 2, axis=1, name="halves")
            elif name == "text":
                tf.strings.length(v1.placeholder(tf.string, [None], "words"), name="lengths")
            else:
                tf.identity(v1.placeholder(tf.float32, None, "x"), name="y")
        (folder / name).mkdir()
        (folder / name / "model.pb").write_bytes(graph.as_graph_def().SerializeToString())


def write_all(folder, network):
    folder.mkdir(parents=True)
    found = {"frozen": write_frozen(folder / "frozen", network), "saved": write_saved(folder / "saved", network)}
    write_checkpoint(folder / "checkpoint", network)
    write_others(folder)
    np.savez(folder / "expected.npz", **found)


for file, place in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
    write_all(Path(place), dict(np.load(file)))
