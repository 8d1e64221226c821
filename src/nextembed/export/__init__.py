"""Export of a trained model: ONNX (float or int8), a torch.export program, a folder for the hub."""
