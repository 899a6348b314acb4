"""The model as MLflow's registry keeps it: this file and the folder `model/` as code, a checkpoint as weights.

MLflow copies this file and runs the copy when the model is loaded, so it may import nothing but `model` and what is
installed. `mlflow.pyfunc.load_model("models:/d4rt@champion").predict(inputs)` takes and gives arrays by name;
`.unwrap_python_model().model` is the D4RT itself, to encode once and ask often.
"""

from dataclasses import fields

import mlflow
import numpy as np
import torch

from model import Queries, checkpoints
from model.precision import half_on_gpu


class RegisteredD4RT(mlflow.pyfunc.PythonModel):
    def load_context(self, context: mlflow.pyfunc.PythonModelContext) -> None:
        """On the GPU if there is one."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = checkpoints.load(context.artifacts["checkpoint"], device)

    @torch.inference_mode()
    def predict(self, context, model_input, params=None):  # MLflow would read type hints as a signature
        """Arrays by name, in and out: B clips and Q queries of each; see the signature in `train/tracking.py`."""
        tensors = {name: torch.from_numpy(np.array(array)).to(self.model.device) for name, array in model_input.items()}
        queries = Queries(**{field.name: tensors[field.name] for field in fields(Queries)})
        with half_on_gpu(self.model.device):
            prediction = self.model(tensors["video"], tensors["aspect"], queries)
        names = ("xyz", "uv_tgt", "visible", "displacement", "normal", "confidence")
        return {name: getattr(prediction, name).cpu().numpy() for name in names}


mlflow.models.set_model(RegisteredD4RT())
