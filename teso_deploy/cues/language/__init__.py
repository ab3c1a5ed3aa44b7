"""Captioner and reasoner of :mod:`teso_deploy.cues.model_bundle`, run by ONNX Runtime: by a process of their own."""
