"""Lets TensorFlow itself write networks in its forms; convert/test_written_by_tensorflow.py runs it and reads them.

``graph FROZEN.pb FOLDER`` writes a checkpoint and a saved model of TensorFlow 1, ``tfjs FROZEN.pb FOLDER`` models of
TensorFlow.js, ``keras FOLDER`` checkpoints and saved models of TensorFlow 2. The interpreter needs tensorflow or
tensorflow-cpu; for TensorFlow.js also its converter, for which ``pip install --no-deps tensorflowjs`` is enough.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import numpy as np

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import tensorflow as tf

WEIGHTS = ("weights", "depthwise_weights", "biases", "gamma", "beta", "moving_mean", "moving_variance")
NO_CONVERTER = 3  # exit code


def read_frozen(path: str) -> Any:
    graph = tf.compat.v1.GraphDef()
    graph.ParseFromString(Path(path).read_bytes())
    return graph


def write_graph(frozen: str, folder: Path) -> None:
    """A checkpoint of variables with the values of the constants, and a saved model of the graph as it is."""
    graph = read_frozen(frozen)
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        for node in graph.node:
            if node.op == "Const" and node.name.rpartition("/")[2] in WEIGHTS:
                v1.get_variable(node.name, initializer=tf.make_ndarray(node.attr["value"].tensor))
        session.run(v1.global_variables_initializer())
        v1.train.Saver().save(session, str(folder / "checkpoint/model.ckpt"), global_step=7)
    with tf.Graph().as_default() as whole, v1.Session() as session:
        tf.import_graph_def(graph, name="")
        tensors = {name: whole.get_tensor_by_name(f"{name}:0") for name in ("image_tensor", "detection_boxes")}
        v1.saved_model.simple_save(
            session,
            str(folder / "saved_model"),
            {"image": tensors["image_tensor"]},
            {"boxes": tensors["detection_boxes"]},
        )


def write_tfjs(frozen: str, folder: Path) -> None:
    """Graph models in float32 and uint8, by the converter that TensorFlow.js' own package has."""
    if importlib.util.find_spec("tensorflowjs") is None:
        raise SystemExit(NO_CONVERTER)
    # imported by the package but not needed for graphs; some have no release for a current TensorFlow
    for name in ("tensorflow_decision_forests", "tensorflow_hub", "tf_keras", "jax", "jax.experimental"):
        sys.modules.setdefault(name, MagicMock(spec=ModuleType, __spec__=None))
    sys.modules["jax.experimental"].jax2tf = MagicMock()
    from tensorflowjs.converters import tf_saved_model_conversion_v2 as converter

    for kind in ("float32", "uint8"):
        converter.convert_tf_frozen_model(
            frozen,
            "detection_boxes,detection_scores",
            str(folder / kind),
            skip_op_check=True,
            strip_debug_ops=True,
            quantization_dtype_map={} if kind == "float32" else {kind: "*"},
        )


def write_keras(folder: Path) -> None:
    """Keras' MobileNetV2 with norms that do something, and what it computes for one picture."""
    tf.keras.utils.set_random_seed(0)
    model = tf.keras.applications.MobileNetV2(weights=None, alpha=0.35, input_shape=(96, 96, 3), classes=10)
    random = np.random.default_rng(0)
    for variable in model.variables:
        if not variable.path.endswith("kernel"):
            low = 0.5 if variable.path.endswith(("gamma", "variance")) else -0.2
            variable.assign(random.uniform(low, low + 0.5, variable.shape))
    tf.saved_model.save(model, str(folder / "saved_model"))
    model.export(str(folder / "exported"), verbose=False)
    tf.train.Checkpoint(model=model).write(str(folder / "checkpoint/ckpt"))
    image = random.uniform(-1, 1, (1, 96, 96, 3)).astype(np.float32)
    np.savez(
        folder / "expected.npz",
        image=image,
        scores=model(image, training=False).numpy(),
        **{f"variable {number}": variable.numpy() for number, variable in enumerate(model.variables)},
    )


if __name__ == "__main__":
    form, *arguments = sys.argv[1:]
    target = Path(arguments[-1])
    target.mkdir(parents=True, exist_ok=True)
    if form == "keras":
        write_keras(target)
    else:
        {"graph": write_graph, "tfjs": write_tfjs}[form](arguments[0], target)
