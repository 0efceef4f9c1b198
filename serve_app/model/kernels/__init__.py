"""Triton kernels of the tick. `plug` gives them to the operations of the model; `splits` says how they are cut.

All others but `check` need the triton package and are imported late. Each kernel stands in for the PyTorch path of an
operation, which is its oracle under Triton's interpreter and what runs without a GPU.
"""
