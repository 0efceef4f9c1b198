"""Triton kernels of the tick, behind `ops`; every other module here needs the triton package and is imported late.

Each has a PyTorch twin in the model, which is its oracle under Triton's interpreter and what runs without a GPU.
"""
