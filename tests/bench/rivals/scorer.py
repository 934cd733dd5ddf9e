"""The model as a runtime of MLServer: ONNX Runtime, one thread."""

import numpy as np
import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse


class Scorer(MLModel):
    async def load(self):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        file = self.settings.parameters.uri
        self.session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        return True

    async def predict(self, payload):
        data = np.asarray(NumpyCodec.decode_input(payload.inputs[0]), "float32")
        (scores,) = self.session.run(None, {"data": data})
        outputs = [NumpyCodec.encode_output("probabilities", scores)]
        return InferenceResponse(model_name=self.name, id=payload.id, outputs=outputs)
