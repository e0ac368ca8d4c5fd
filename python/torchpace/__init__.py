"""torchpace: which way of running this PyTorch model is fastest on this machine, and by how much.

The Python half: the models and runtimes that serve as baselines, the worker that the controller
commands, the exporter of weights, inputs and float64 truths, the text loader and the report.
Importing it imports no torch.
"""

__version__ = "0.1.0"
