"""A trained model as something else: ONNX (float or int8), a torch.export program, a folder for the hub."""
