"""A policy behind a websocket: openpi's protocol, dynamic batching, limits."""
