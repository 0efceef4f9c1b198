"""Kyutai folders and hub repositories, read into modules.

Imports nothing: gateways need `text` and `source`, without torch.
"""
