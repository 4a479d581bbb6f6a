"""The ifbusd daemon."""
