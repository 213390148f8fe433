"""Write trained or upstream weights in a format of ours, ONNX or OpenVINO, checked against the weights they come from."""
