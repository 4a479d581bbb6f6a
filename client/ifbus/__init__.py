"""Client library of the ifbusd daemon."""
