"""The models of :mod:`teso_deploy.cues.model_bundle`, run by ONNX Runtime in a separate process."""
