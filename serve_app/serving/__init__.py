"""Ray Serve and FastAPI, thin: two applications, the gateway and the engine, and what starts them."""
