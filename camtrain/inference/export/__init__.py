"""``camtrain export``: a trained network as an ONNX or pt2 file, checked before it is kept."""
