"""A trained model as a folder that others can use: safetensors, a card, ONNX and torch.export if
asked.

Whatever is written is read again and compared on real images before the folder gets its name.
"""
