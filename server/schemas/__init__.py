"""The shapes on the wire; /openapi.json is generated from them."""
