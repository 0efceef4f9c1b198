"""Files in, files out: recordings through any model, many in one batch, with neither Ray nor a server."""
