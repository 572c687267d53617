"""The ground that the commands stand on."""
